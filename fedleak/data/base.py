"""What every data set of fedleak is: private samples that the clients of a federation share out."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fedleak.errors import require

Kind = Literal["images", "interactions"]
Indices = Sequence[int] | Tensor | npt.NDArray[np.int64]


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """A number of samples, each of them a pair of tensors."""

    @abstractmethod
    def __len__(self) -> int:
        """Their number."""


class TrainSet(Samples):
    """The samples that clients train on, in memory, with their labels.

    Attributes:
        labels: their classes, int64 ``(N,)``, counted from 0; all 0 where there are none.
    """

    labels: Tensor

    @abstractmethod
    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Several samples at once.

        Args:
            indices: B positions in this set.

        Returns:
            Samples ``(B, ...)``, as the model takes them, and labels, int64 ``(B,)``.
        """


class PrivateData(pl.LightningDataModule):
    """Training samples of one shape, which the clients share out, and a test set.

    The loaders need no Trainer; that of the training set shuffles with torch's global generator, as
    Lightning's ``seed_everything`` expects.

    Args:
        batch_size: samples a batch in all loaders, at least 1.

    Raises:
        BadInput: if ``batch_size`` is out of its range.
    """

    name: str  # set by each subclass; Lightning declares it, so it cannot be a ClassVar
    kind: ClassVar[Kind]
    """What a sample is, and so how a reconstruction of it is scored and shown."""

    def __init__(self, *, batch_size: int = 64) -> None:
        super().__init__()
        require(batch_size >= 1, f"Expected `batch_size` to be at least 1, got {batch_size}.")
        self.batch_size = batch_size

    @property
    @abstractmethod
    def train_set(self) -> TrainSet:
        """The training samples, which the clients share out."""

    @property
    @abstractmethod
    def test_set(self) -> Samples:
        """The test samples, which no client trains on."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a sample."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """The number of classes; 1 where there are none."""

    @property
    @abstractmethod
    def mean(self) -> tuple[float, ...]:
        """What was taken from each channel of a sample, on the scale [0, 1]."""

    @property
    @abstractmethod
    def std(self) -> tuple[float, ...]:
        """What each channel was divided by thereafter."""

    def describe(self) -> str:
        """The counts in a line."""
        return (
            f"{self.name}: {len(self.train_set):,} samples for training, "
            f"{len(self.test_set):,} for the test"
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Shuffled batches of the training set."""
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True, num_workers=0)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of the test set, in order, where no set is held out for validation."""
        return self.test_dataloader()

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of the test set, in order."""
        return DataLoader(self.test_set, batch_size=self.batch_size, num_workers=0)
