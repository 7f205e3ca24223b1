"""Synthetic users of planted groups."""

import numpy as np

from fedleak.data.planted import PlantedGroups


def test_counts_of_planted_groups() -> None:
    data = PlantedGroups(users=100, held_out=10, items_per_user=9)
    assert data.num_users == 100
    assert len(data.train_set) == 80
    assert data.train_set.matrix.nnz == 80 * 9
    # Far more than the fourth part that users of no taste would have.
    items = data.split.items
    own = [
        np.bincount(items[data.train_set.matrix[[row]].indices] % 4, minlength=4).max() / 9
        for row in range(80)
    ]
    assert np.mean(own) > 0.7
