"""Synthetic users with planted preferences, for tests and for runs without any file."""

import numpy as np

from fedleak.data.interactions import Ids
from fedleak.data.recommender import RecommenderData
from fedleak.errors import require


class PlantedGroups(RecommenderData):
    """Synthetic users of several groups; each group prefers items of its own.

    A user's group is drawn uniformly. Item i is a favourite of group i modulo ``groups``. A user
    has ``items_per_user`` distinct items; each is drawn from the group's favourites with
    probability ``faithful``, otherwise from all items. A model that learns the groups ranks hidden
    items far better than one that ranks by popularity.

    Args:
        users: number of users, more than twice ``held_out``.
        items: number of items.
        groups: number of groups, at least 2.
        items_per_user: number of items of every user, from 5 to ``items / groups``.
        faithful: probability of an item from the group's favourites, 0 to 1.
        data_seed: seed of the draws, at least 0.
        held_out: see :class:`RecommenderData`.
        batch_size: see :class:`RecommenderData`.
        split_seed: see :class:`RecommenderData`.

    Raises:
        BadInput: if a value is out of its range.
    """

    name = "planted_groups"

    def __init__(
        self,
        *,
        users: int = 400,
        items: int = 200,
        groups: int = 4,
        items_per_user: int = 12,
        faithful: float = 0.8,
        data_seed: int = 0,
        held_out: int = 50,
        batch_size: int = 64,
        split_seed: int = 98765,
    ) -> None:
        super().__init__(held_out=held_out, batch_size=batch_size, split_seed=split_seed)
        require(groups >= 2, f"Expected `groups` to be at least 2, got {groups}.")
        require(
            5 <= items_per_user <= items // groups,
            f"Expected `items_per_user` to be from 5 to {items // groups}, the number of a group's "
            f"favourites, got {items_per_user}.",
        )
        require(0 <= faithful <= 1, f"Expected `faithful` to be from 0 to 1, got {faithful}.")
        require(
            users > 2 * held_out,
            f"Expected `users` to be more than twice the {held_out} held out, got {users}.",
        )
        self.users = users
        self.items = items
        self.groups = groups
        self.items_per_user = items_per_user
        self.faithful = faithful
        self.data_seed = data_seed

    def load(self) -> tuple[Ids, Ids]:
        """See :meth:`RecommenderData.load`; the group of an item is its number modulo groups."""
        random = np.random.default_rng(self.data_seed)
        favourite = np.arange(self.items) % self.groups
        chosen = []
        for group in random.integers(self.groups, size=self.users):
            likes = favourite == group
            chance = self.faithful * likes / likes.sum() + (1 - self.faithful) / self.items
            chosen.append(
                random.choice(self.items, size=self.items_per_user, replace=False, p=chance)
            )
        users = np.repeat(np.arange(self.users), self.items_per_user)
        return users.astype(np.int64), np.concatenate(chosen).astype(np.int64)
