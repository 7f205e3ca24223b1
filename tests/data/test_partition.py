import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedleak.data import partition
from fedleak.errors import BadInput

KINDS = ("iid", "dirichlet", "shards")
BALANCED = np.repeat(np.arange(10), 100)


def skew(parts: list[np.ndarray], labels: np.ndarray) -> float:
    """Mean share of a client's most frequent class."""
    return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=80),
    clients=st.integers(1, 12),
    kind=st.sampled_from(KINDS),
    alpha=st.floats(1e-3, 1e3),
    shards_per_client=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_each_sample_once_and_no_client_empty(
    labels, clients, kind, alpha, shards_per_client, seed
) -> None:
    settings_ = {"alpha": alpha, "shards_per_client": shards_per_client, "seed": seed}
    try:
        parts = partition(labels, clients, kind=kind, **settings_)
    except BadInput:
        # Refused only where a client may have to go empty.
        wanted = clients * (shards_per_client if kind == "shards" else 1)
        assert wanted > len(labels) or kind == "dirichlet"
        return
    assert len(parts) == clients
    assert all(len(part) and part.dtype == np.int64 for part in parts)
    assert all((np.diff(part) > 0).all() for part in parts)
    assert np.sort(np.concatenate(parts)).tolist() == list(range(len(labels)))
    again = partition(labels, clients, kind=kind, **settings_)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_differ_and_global_state_is_left_alone(kind: str) -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (partition(BALANCED, 5, kind=kind, seed=seed) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_iid_is_even_and_mixed() -> None:
    parts = partition(BALANCED, 7)
    assert sorted({len(part) for part in parts}) == [142, 143]
    assert skew(parts, BALANCED) < 0.2


def test_small_alpha_is_more_skewed() -> None:
    def mean_skew(alpha: float) -> float:
        draws = (
            partition(BALANCED, 5, kind="dirichlet", alpha=alpha, seed=seed) for seed in range(5)
        )
        return float(np.mean([skew(parts, BALANCED) for parts in draws]))

    small, middle, large = mean_skew(0.1), mean_skew(1.0), mean_skew(1000.0)
    assert small > middle + 0.1 > large + 0.2
    assert large < 0.15


def test_huge_alpha_is_even() -> None:
    parts = partition(BALANCED, 4, kind="dirichlet", alpha=1e9)
    assert [np.bincount(BALANCED[part]).tolist() for part in parts] == [[25] * 10] * 4
    # Which samples of a class a client gets is drawn; it is not a stretch of the file.
    assert not np.array_equal(parts[0][:25], np.arange(25))


@pytest.mark.parametrize(
    ("clients", "shards_per_client"), [(5, 2), (10, 1), (10, 2), (5, 4), (2, 5)]
)
def test_shards_hold_few_classes(clients: int, shards_per_client: int) -> None:
    for seed in range(3):
        parts = partition(
            BALANCED, clients, kind="shards", shards_per_client=shards_per_client, seed=seed
        )
        assert {len(part) for part in parts} == {1000 // clients}
        assert max(len(np.unique(BALANCED[part])) for part in parts) <= shards_per_client


def test_shards_do_not_depend_on_the_order_of_the_file() -> None:
    parts = partition(BALANCED, 20, kind="shards", shards_per_client=1)
    # Two clients share a class; sorted by position, one would hold the first half of it.
    assert not any(part[-1] - part[0] == len(part) - 1 for part in parts)


def test_one_sample_each() -> None:
    assert [part.tolist() for part in partition(BALANCED, 4, kind="one_each")] == [
        [0], [1], [2], [3],
    ]  # fmt: skip


def test_tensor_labels() -> None:
    parts = partition(torch.from_numpy(BALANCED), 3, kind="dirichlet")
    expected = partition(BALANCED, 3, kind="dirichlet")
    assert all(np.array_equal(a, b) for a, b in zip(parts, expected, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clients": 0}, "`clients` to be 1 or more, got 0"),
        ({"clients": 1001}, "number of samples, 1000, got 1001; lower `clients`"),
        ({"labels": BALANCED[:, None]}, r"`labels` .* got the shape \(1000, 1\)"),
        ({"kind": "dirichle"}, "`dirichle`: expected one of dirichlet, .*shards.*Did you mean"),
        ({"seed": -1}, "`seed` to be 0 or more, got -1"),
        ({"kind": "dirichlet", "alpha": 0.0}, "`alpha` to be finite and above 0, got 0.0"),
        ({"kind": "dirichlet", "alpha": float("nan")}, "`alpha` .* got nan"),
        ({"kind": "dirichlet", "alpha": float("inf")}, "`alpha` .* got inf"),
        (
            {"kind": "dirichlet", "alpha": 1e-3, "clients": 50},
            "`alpha` = 0.001 left one of 50 clients .* raise `alpha` or lower `clients`",
        ),
        (
            {"kind": "shards", "shards_per_client": 0},
            "`shards_per_client` to be 1 or more, got 0",
        ),
        (
            {"kind": "shards", "shards_per_client": 300},
            "1000, got 5 x 300 = 1500; lower one of them",
        ),
    ],
)
def test_bad_input(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        partition(**({"labels": BALANCED, "clients": 5} | arguments))


@pytest.mark.parametrize("kind", ["dirichlet", "shards"])
def test_targets_of_a_regression_are_no_classes(kind: str) -> None:
    with pytest.raises(BadInput, match=f"classes for the partition {kind}, got a target of numb"):
        partition(np.linspace(0, 1, 20), 2, kind=kind)
    assert len(partition(np.linspace(0, 1, 20), 2, kind="iid")) == 2
