"""Base classes of data sets: private samples that are partitioned over a federation's clients."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fedleak.errors import require

Kind = Literal["images", "interactions", "tables", "tokens"]
Indices = Sequence[int] | Tensor | npt.NDArray[np.int64]


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """A data set of samples that are pairs of tensors."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""


class TrainSet(Samples):
    """The training samples, in memory, with their labels.

    Attributes:
        labels: the samples' classes, int64 ``(N,)``, counted from 0; all 0 if there are no classes.
            Targets of a regression are float32.
    """

    labels: Tensor

    @abstractmethod
    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Several samples at once.

        Args:
            indices: B positions in this set.

        Returns:
            Samples ``(B, ...)``, in the model's input format, and labels ``(B,)``.
        """


class PrivateData(pl.LightningDataModule):
    """Training samples of one shape, which are partitioned over the clients, and a test set.

    The loaders need no Trainer. The training loader shuffles with torch's global generator, which
    Lightning's ``seed_everything`` seeds.

    Args:
        batch_size: samples per batch in all loaders, at least 1.

    Raises:
        BadInput: if ``batch_size`` is out of its range.
    """

    name: str  # set by each subclass; Lightning declares it, so it cannot be a ClassVar
    kind: ClassVar[Kind]
    """The kind of sample, which determines how a reconstruction is scored and displayed."""

    def __init__(self, *, batch_size: int = 64) -> None:
        super().__init__()
        require(batch_size >= 1, f"Expected `batch_size` to be at least 1, got {batch_size}.")
        self.batch_size = batch_size

    @property
    @abstractmethod
    def train_set(self) -> TrainSet:
        """The training samples, which are partitioned over the clients."""

    @property
    @abstractmethod
    def test_set(self) -> Samples:
        """The test samples, on which no client trains."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a sample."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """The number of classes; 1 if there are no classes."""

    @property
    @abstractmethod
    def mean(self) -> tuple[float, ...]:
        """The value subtracted from each channel of a sample, on the scale [0, 1]."""

    @property
    @abstractmethod
    def std(self) -> tuple[float, ...]:
        """The value by which each channel is divided afterwards."""

    @property
    def value_range(self) -> tuple[float, float] | tuple[Tensor, Tensor] | None:
        """Lowest and highest value of a sample before normalisation, which attacks keep to.

        Two numbers, or two tensors of the shape of a sample. None: there are no such limits.
        """
        return 0.0, 1.0

    def describe(self) -> str:
        """The name and the numbers of samples, in one line."""
        return (
            f"{self.name}: {len(self.train_set):,} samples for training, "
            f"{len(self.test_set):,} for the test"
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Shuffled batches of the training set."""
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True, num_workers=0)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of the test set, in order, unless a subclass has a validation set."""
        return self.test_dataloader()

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of the test set, in order."""
        return DataLoader(self.test_set, batch_size=self.batch_size, num_workers=0)
