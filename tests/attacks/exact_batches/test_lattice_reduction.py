"""LLL: the same lattice, and conditions of a reduced basis computed in rational numbers."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedleak.attacks.exact_batches.lattice_reduction import reduced

SQUARES = st.integers(2, 5).flatmap(
    lambda n: st.lists(
        st.lists(st.integers(-999, 999), min_size=n, max_size=n), min_size=n, max_size=n
    )
)


def determinant(rows: list[list[Fraction]]) -> Fraction:
    rows, found = [list(row) for row in rows], Fraction(1)
    for at in range(len(rows)):
        pivot = next((i for i in range(at, len(rows)) if rows[i][at]), None)
        if pivot is None:
            return Fraction(0)
        if pivot != at:
            rows[at], rows[pivot], found = rows[pivot], rows[at], -found
        found *= rows[at][at]
        for i in range(at + 1, len(rows)):
            share = rows[i][at] / rows[at][at]
            rows[i] = [x - share * y for x, y in zip(rows[i], rows[at], strict=True)]
    return found


def coordinates(vector: list[int], basis: list[list[int]]) -> list[Fraction]:
    """By Cramer's rule."""
    whole = determinant([[Fraction(v) for v in row] for row in basis])
    return [
        determinant(
            [[Fraction(v) for v in (vector if i == at else row)] for i, row in enumerate(basis)]
        ) / whole
        for at in range(len(basis))
    ]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(rows=SQUARES)
def test_it_spans_the_same_lattice_with_short_vectors(rows: list[list[int]]) -> None:
    size = determinant([[Fraction(v) for v in row] for row in rows])
    if size == 0:
        with pytest.raises(ValueError, match="dependent"):
            reduced(rows)
        return
    found = reduced(rows)
    assert abs(determinant([[Fraction(v) for v in row] for row in found])) == abs(size)
    assert all(c.denominator == 1 for row in found for c in coordinates(row, rows))
    # With factor 3/4, the first vector's length is at most 2^((n-1)/4) |det|^(1/n).
    n, shortest = len(rows), sum(v * v for v in found[0])
    assert shortest ** (2 * n) <= 2 ** (n * (n - 1)) * abs(size) ** 4


def test_a_known_relation_is_found() -> None:
    """3 a - 5 b + c = 0 for three large numbers."""
    a, b = 10**9 + 7, 7 * 10**8 + 9
    rows = [[a, 1, 0, 0], [b, 0, 1, 0], [5 * b - 3 * a, 0, 0, 1]]
    assert reduced(rows)[0] in ([0, 3, -5, 1], [0, -3, 5, -1])
