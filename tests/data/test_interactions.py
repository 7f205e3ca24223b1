"""Interactions of users with items, and their split by users."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedleak.data.interactions import split_users
from fedleak.errors import BadInput
from tests.data.recommender_files import TOY, pairs


def test_split_by_hand() -> None:
    split = split_users(*pairs(TOY), held_out=2)
    order = np.arange(1, 9)[np.random.RandomState(98765).permutation(8)]
    assert split.train.users.tolist() == order[:4].tolist()
    assert split.validation.users.tolist() == order[4:6].tolist()
    assert split.test.users.tolist() == order[6:].tolist()
    assert split.items.tolist() == sorted({item for user in order[:4] for item in TOY[user]})
    for row, user in enumerate(split.train.users):
        vector, label = split.train[row]
        assert vector.dtype == torch.float32
        assert label == 0
        assert sorted(split.items[vector.numpy() == 1]) == sorted(TOY[user])
        assert vector.sum() == len(TOY[user])
    # Of a held-out user the two items that training users have too are left, too few to be hidden.
    given_items, hidden = split.test[0]
    assert split.items[given_items.numpy() == 1].tolist() == [5, 6]
    assert hidden.sum() == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.floats(0.1, 0.6))
def test_each_item_is_either_given_or_hidden(seed: int, held_out: int, share: float) -> None:
    random = np.random.default_rng(seed)
    table = {
        user: sorted(random.choice(12, size=random.integers(1, 12), replace=False))
        for user in range(40)
    }
    users, items = pairs(table)
    doubled = np.concatenate([users, users]), np.concatenate([items, items])
    split = split_users(*doubled, held_out=held_out, hidden=share, seed=seed % 1000)
    active = {user for user, owned in table.items() if len(owned) >= 5}
    parts = [split.train.users, split.validation.users, split.test.users]
    assert sorted(np.concatenate(parts)) == sorted(active)
    for part in (split.validation, split.test):
        assert len(part) == held_out
        for row, user in enumerate(part.users):
            told, hidden = part[row]
            assert not (told * hidden).any()
            owned = sorted(set(table[user]) & set(split.items))
            assert sorted(split.items[(told + hidden).numpy() == 1]) == owned
            expected = int(share * len(owned)) if len(owned) >= 5 else 0
            assert hidden.sum() == expected


def test_the_split_depends_on_its_seed() -> None:
    users, items = pairs(TOY)
    again = [split_users(users, items, held_out=2, seed=seed).train.users for seed in (1, 1, 2)]
    assert np.array_equal(again[0], again[1])
    assert not np.array_equal(again[0], again[2])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"held_out": 4}, "more than 8 users with at least 5 items.* got 8"),
        ({"held_out": 0}, "`held_out` to be at least 1, got 0"),
        ({"least": 0}, "`least` to be at least 1, got 0"),
        ({"hidden": 1.0}, "`hidden` to be above 0 and below 1, got 1.0"),
    ],
)
def test_bad_splits(change: dict[str, float], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        split_users(*pairs(TOY), **({"held_out": 2} | change))  # type: ignore[arg-type]
