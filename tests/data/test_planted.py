"""Synthetic users of planted groups."""

import numpy as np
import pytest

from fedleak.data.planted import PlantedGroups
from fedleak.errors import BadInput


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


def test_the_seed_determines_the_users() -> None:
    first, again, other = (PlantedGroups(data_seed=seed).load() for seed in (1, 1, 2))
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_faithful_users_have_only_favourites() -> None:
    users, items = PlantedGroups(faithful=1.0, groups=4).load()
    for user in np.unique(users):
        owned = items[users == user]
        assert len(set(owned)) == len(owned) == 12
        assert len(set(owned % 4)) == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"groups": 1}, "`groups` to be at least 2, got 1"),
        ({"items_per_user": 51}, r"`items_per_user` to be from 5 to 50, .* got 51"),
        ({"faithful": 1.5}, "`faithful` to be from 0 to 1, got 1.5"),
        ({"users": 100}, "`users` to be more than twice the 50 held out, got 100"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        PlantedGroups(**settings)  # type: ignore[arg-type]
