"""Base class of recommender data sets: training users, and users held out.

A new one is a subclass of :class:`RecommenderData` with a ``name`` and a ``load`` method.
"""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor
from torch.utils.data import DataLoader

from fedleak.data.base import Kind, PrivateData
from fedleak.data.interactions import FoldInSet, Ids, InteractionSet, UserSplit, split_users
from fedleak.errors import require


class RecommenderData(PrivateData):
    """Interactions of users with items, split by users; a sample is a user's vector in {0, 1}.

    A subclass sets ``name`` and implements :meth:`load`. Properties load the data on first access,
    so no Trainer is needed.

    Args:
        held_out: number of users held out for validation, and as many for the test, at least 1.
        batch_size: see :class:`PrivateData`.
        split_seed: seed of the split by users, see :func:`fedleak.data.interactions.split_users`.

    Raises:
        BadInput: if a value is out of its range.
    """

    kind: ClassVar[Kind] = "interactions"

    def __init__(self, *, held_out: int, batch_size: int = 64, split_seed: int = 98765) -> None:
        super().__init__(batch_size=batch_size)
        require(held_out >= 1, f"Expected `held_out` to be at least 1, got {held_out}.")
        self.held_out = held_out
        self.split_seed = split_seed
        self._split: UserSplit | None = None

    @abstractmethod
    def load(self) -> tuple[Ids, Ids]:
        """Return the user ids and the item ids of all interactions, each int64 ``(n,)``.

        It is called once.

        Raises:
            BadInput: if the data is missing or not usable.
        """

    def item_names(self) -> list[str]:
        """The items' names, column by column; by default their ids in the file."""
        return [str(item) for item in self.split.items]

    @property
    def split(self) -> UserSplit:
        """The users for training, validation and test."""
        if self._split is None:
            users, items = self.load()
            self._split = split_users(users, items, held_out=self.held_out, seed=self.split_seed)
        return self._split

    def setup(self, stage: str | None = None) -> None:
        """Load the data; only the first call has an effect.

        Args:
            stage: Lightning's stage; all stages use the same split.

        Raises:
            BadInput: if the data is missing or not usable.
        """
        _ = self.split

    @property
    def train_set(self) -> InteractionSet:
        """The training users; in a federation, each of them is a client."""
        return self.split.train

    @property
    def validation_set(self) -> FoldInSet:
        """Users held out for choosing hyperparameters."""
        return self.split.validation

    @property
    def test_set(self) -> FoldInSet:
        """Users held out for the reported metrics."""
        return self.split.test

    @property
    def input_shape(self) -> tuple[int]:
        """The number of items, as the shape of a user's vector."""
        return (len(self.split.items),)

    @property
    def num_classes(self) -> int:
        """See :attr:`PrivateData.num_classes`: users have no classes."""
        return 1

    @property
    def mean(self) -> tuple[float, ...]:
        """See :attr:`PrivateData.mean`: interactions are 0 or 1 and not normalised."""
        return (0.0,)

    @property
    def std(self) -> tuple[float, ...]:
        """See :attr:`PrivateData.std`."""
        return (1.0,)

    @property
    def num_users(self) -> int:
        """The number of users, including those held out."""
        return len(self.train_set) + len(self.validation_set) + len(self.test_set)

    @property
    def num_interactions(self) -> int:
        """The number of interactions, including those of users held out."""
        held_out = (self.validation_set, self.test_set)
        return int(self.train_set.matrix.nnz) + sum(
            int(part.given.nnz + part.hidden.nnz) for part in held_out
        )

    def describe(self) -> str:
        """The name and the numbers of users, items and interactions, in one line."""
        return (
            f"{self.name}: {self.num_users:,} users, {self.input_shape[0]:,} items, "
            f"{self.num_interactions:,} interactions; {self.held_out} users held out for "
            f"validation, {self.held_out} for the test"
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of the users held out for validation, in order: given and hidden items."""
        return DataLoader(self.validation_set, batch_size=self.batch_size, num_workers=0)
