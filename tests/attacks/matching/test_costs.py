import math

import pytest
import torch

from fedleak.attacks.matching.costs import COSTS, Products, cosine, squared_error
from tests.reference import cost_of


def products_of(dummy: list[float], target: list[float]) -> Products:
    ours, theirs = torch.tensor([dummy, target], dtype=torch.float64)
    return Products((ours * theirs).sum(), ours.square().sum(), theirs.square().sum())


def test_by_hand() -> None:
    # (3, 4 | 0) and (0, 5 | 12): inner 20, norms 5 and 13.
    products = {"a": products_of([3, 4], [0, 5]), "b": products_of([0], [12])}
    assert cosine(products) == pytest.approx(1 - 20 / (5 * 13))
    assert squared_error(products) == pytest.approx(9 + 1 + 144)


@pytest.mark.parametrize(
    ("factor", "expected"), [(1, 0), (2.5, 0), (-1, 2)], ids=["same", "longer", "opposite"]
)
def test_cosine_is_of_the_angle_alone(factor: float, expected: float) -> None:
    target = [1.0, -2.0, 0.5]
    products = {"a": products_of([factor * value for value in target], target)}
    assert cosine(products) == pytest.approx(expected, abs=1e-6)
    assert squared_error(products) == pytest.approx((factor - 1) ** 2 * 5.25)


def test_at_a_right_angle() -> None:
    products = {"a": products_of([1, 0], [0, 3])}
    assert cosine(products) == 1
    assert squared_error(products) == 10


def test_gradients_of_zero_are_as_far_as_it_gets() -> None:
    """No division by zero: a cost that is not a number would be lost."""
    assert cosine({"a": products_of([0, 0], [1, 2])}) == 1
    assert cosine({"a": products_of([1, 2], [0, 0])}) == 1
    assert math.isfinite(squared_error({"a": products_of([0], [0])}))


@pytest.mark.parametrize("kind", COSTS)
def test_over_all_parameters_at_once(kind: str) -> None:
    """Not the mean of the parameters' own costs."""
    torch.manual_seed(0)
    shapes = {"a": (3, 4), "b": (4,), "c": (2, 2, 2)}
    ours, theirs = ({n: torch.randn(s).double() for n, s in shapes.items()} for _ in range(2))
    products = {
        name: Products(
            (ours[name] * theirs[name]).sum(), ours[name].square().sum(),
            theirs[name].square().sum(),
        )
        for name in shapes
    }  # fmt: skip
    torch.testing.assert_close(COSTS[kind](products), cost_of(kind, ours, theirs))
