import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given

from fedleak.runtime.seeds import derive_seed


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((0,), 2968811710),
        ((0, 1, 2), 1016617948),
        ((1, 1, 2), 1158480471),
        ((2**40, 3), 2552297765),
    ],
)
def test_the_same_on_every_machine_and_in_every_version(
    numbers: tuple[int, ...], expected: int
) -> None:
    """Pinned: results of old runs could not be repeated if these changed."""
    assert derive_seed(*numbers) == expected


def test_distinct() -> None:
    numbers = list(itertools.product(range(12), repeat=3))
    assert len({derive_seed(*triple) for triple in numbers}) == len(numbers)


@given(st.lists(st.integers(0, 2**64), min_size=1, max_size=4))
def test_range(numbers: list[int]) -> None:
    assert 0 <= derive_seed(*numbers) < 2**32


def test_trailing_zeros_count() -> None:
    """Client 0 of a round is not the round, nor round 0 the run."""
    assert len({derive_seed(*numbers) for numbers in ((1,), (1, 0), (1, 0, 0))}) == 3


def test_order_matters() -> None:
    assert derive_seed(1, 2) != derive_seed(2, 1)


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        derive_seed(-1)
