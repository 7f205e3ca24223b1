"""User-item interactions as a sparse matrix, and its split by users."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fedleak.data.base import Indices, Samples, TrainSet
from fedleak.errors import require

Ids = npt.NDArray[np.int64]


class InteractionSet(TrainSet):
    """Users' interaction vectors, stored sparse and returned dense; a sample is a user.

    Args:
        matrix: float32 ``(users, items)``, 1 for each interaction of a user with an item.
        users: the users' ids in the file, ``(users,)``.
    """

    def __init__(self, matrix: csr_array, users: Ids) -> None:
        self.matrix = matrix
        self.users = users
        # Users have no classes; code that needs labels gets the single class 0.
        self.labels = torch.zeros(len(self), dtype=torch.int64)

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A user's vector, float32 ``(items,)``, and the label 0, since there are no classes."""
        inputs, labels = self.batch([index])
        return inputs[0], labels[0]

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Several users at once; see :meth:`TrainSet.batch`.

        Returns:
            Vectors, float32 ``(B, items)``, and zeros ``(B,)``.
        """
        return dense(self.matrix, indices), torch.zeros(len(indices), dtype=torch.int64)


class FoldInSet(Samples):
    """Held-out users: the items that are given to a model, and the items that it has to rank.

    Args:
        given: float32 ``(users, items)``, 1 for the items that are given to the model.
        hidden: float32 ``(users, items)``, 1 for the items that are hidden; a user may have none.
        users: the users' ids in the file, ``(users,)``.
    """

    def __init__(self, given: csr_array, hidden: csr_array, users: Ids) -> None:
        self.given = given
        self.hidden = hidden
        self.users = users

    def __len__(self) -> int:
        return int(self.given.shape[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A user's given and hidden items, each float32 ``(items,)``."""
        return dense(self.given, [index])[0], dense(self.hidden, [index])[0]


@dataclass(frozen=True)
class UserSplit:
    """Users for training, validation and test.

    Args:
        train: the training users with all their items.
        validation: users held out for choosing hyperparameters.
        test: users held out for the reported metrics.
        items: the items' ids in the file, column by column.
    """

    train: InteractionSet
    validation: FoldInSet
    test: FoldInSet
    items: Ids


def split_users(
    users: Ids,
    items: Ids,
    *,
    held_out: int,
    least: int = 5,
    hidden: float = 0.2,
    seed: int = 98765,
) -> UserSplit:
    """Split interactions by users (strong generalisation; Liang et al., WWW 2018, section 4.2).

    Users with fewer than ``least`` items are dropped, then items that no training user has. A share
    ``hidden`` of each held-out user's items is hidden, unless the user has fewer than ``least``
    items left.

    Args:
        users: user id of each interaction, int64 ``(n,)``.
        items: item id of each interaction, int64 ``(n,)``; repeated pairs count once.
        held_out: number of users held out for validation, and as many for the test, at least 1.
        least: minimum number of items of a user, at least 1.
        hidden: share of a held-out user's items that is hidden, above 0 and below 1.
        seed: seed of the permutation of the users, and of the choice of the hidden items.

    Returns:
        The split.

    Raises:
        BadInput: if a value is out of its range or too few users are left.
    """
    require(held_out >= 1, f"Expected `held_out` to be at least 1, got {held_out}.")
    require(least >= 1, f"Expected `least` to be at least 1, got {least}.")
    require(0 < hidden < 1, f"Expected `hidden` to be above 0 and below 1, got {hidden}.")
    user_ids, rows = np.unique(users, return_inverse=True)
    item_ids, columns = np.unique(items, return_inverse=True)
    shape = len(user_ids), len(item_ids)
    matrix = csr_array((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    active = np.flatnonzero(np.diff(matrix.indptr) >= least)
    require(
        len(active) > 2 * held_out,
        f"Expected more than {2 * held_out} users with at least {least} items, so that {held_out} "
        f"can be held out twice, got {len(active)}.",
    )
    order = active[np.random.RandomState(seed).permutation(len(active))]
    training, validation, test = np.split(order, [len(order) - 2 * held_out, len(order) - held_out])
    known = np.flatnonzero(matrix[training].sum(axis=0))
    held = [
        _fold_in(matrix[chosen][:, known], user_ids[chosen], least, hidden, seed)
        for chosen in (validation, test)
    ]
    train = InteractionSet(matrix[training][:, known], user_ids[training])
    return UserSplit(train, held[0], held[1], item_ids[known])


def _fold_in(matrix: csr_array, users: Ids, least: int, share: float, seed: int) -> FoldInSet:
    random = np.random.RandomState(seed)
    taken = np.zeros(matrix.nnz, dtype=bool)
    for begin, end in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        count = int(end - begin)
        if count >= least:
            taken[begin + random.choice(count, size=int(share * count), replace=False)] = True
    return FoldInSet(_selected(matrix, ~taken), _selected(matrix, taken), users)


def _selected(matrix: csr_array, chosen: npt.NDArray[np.bool_]) -> csr_array:
    """A copy of the matrix with only the chosen entries."""
    entries = matrix.copy()
    entries.data = chosen.astype(np.float32)
    entries.eliminate_zeros()
    return entries


def dense(matrix: csr_array, indices: Indices) -> Tensor:
    """Rows of a sparse matrix as a dense tensor.

    Args:
        matrix: float32 ``(rows, columns)``.
        indices: B positions of rows.

    Returns:
        float32 ``(B, columns)``.
    """
    chosen: Any = matrix[np.asarray(indices, dtype=np.int64)]
    return torch.from_numpy(chosen.toarray())
