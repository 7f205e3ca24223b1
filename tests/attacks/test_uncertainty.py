"""The likely error of a reconstruction, against problems whose answer is known."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fedleak.attacks import uncertainty
from fedleak.attacks.uncertainty import Around, error_of_signs, moved_by_half


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def around(matrix: Tensor, inputs: Tensor, of_noise: Tensor | None = None) -> Around:
    """A gradient ``matrix @ inputs + of_noise @ noise``, that of a loss that is linear in both."""
    noise = {} if of_noise is None else {"slot": drawn(1, of_noise.shape[1], seed=9)}

    def gradient(inputs: Tensor, noise: Any) -> Tensor:
        found = matrix @ inputs.flatten()
        return found if of_noise is None else found + of_noise @ noise["slot"].flatten()

    def input_gradient(offset: Tensor) -> dict[str, Tensor]:
        weights = torch.ones(len(matrix), dtype=torch.float64) + offset
        found = {"": (matrix.T @ weights).reshape(inputs.shape)}
        return found if of_noise is None else found | {"slot": (of_noise.T @ weights)[None]}

    return Around(
        gradient, input_gradient, gradient, inputs, noise, torch.zeros_like(inputs),
        torch.ones(len(matrix)), in_float64=True,
    )  # fmt: skip


def error_of_gradient(*arguments: Any) -> float | None:
    found = uncertainty.error_of_gradient(*arguments)
    return None if found is None else found.error


def rounding(matrix: Tensor) -> Tensor:
    return torch.full((len(matrix),), 1e-9, dtype=torch.float64)


@pytest.mark.parametrize("size", [0.02, 0.5, 3.0])
@pytest.mark.parametrize(("entries", "unknowns"), [(60, 10), (2000, 300)])
def test_what_a_search_has_left_over_is_the_error(entries: int, unknowns: int, size: float) -> None:
    matrix, inputs, off = (drawn(entries, unknowns), drawn(1, unknowns, seed=1), drawn(unknowns))
    off *= size * inputs.norm() / off.norm()
    found = error_of_gradient(around(matrix, inputs), matrix @ off, rounding(matrix))
    assert found == pytest.approx(size, rel=0.05)


def test_a_rest_is_what_no_inputs_explain() -> None:
    matrix, inputs = drawn(60, 10), drawn(1, 10, seed=1)
    basis, _ = torch.linalg.qr(torch.cat([matrix, drawn(60, 1, seed=2)], dim=1))
    within, beside = matrix @ drawn(10, seed=3), basis[:, 10]
    within = within / within.norm()
    for share in (0.0, 0.3, 1.0):
        missed = 1e-3 * ((1 - share**2) ** 0.5 * within + share * beside)
        found = uncertainty.error_of_gradient(around(matrix, inputs), missed, rounding(matrix))
        assert found is not None
        assert found.rest == pytest.approx(share, abs=1e-3)


def test_inputs_that_change_nothing_stay_as_uncertain_as_before() -> None:
    left, _ = torch.linalg.qr(drawn(60, 45))
    matrix = drawn(200, 60) @ left @ left.T
    inputs = drawn(2, 30, seed=1)
    found = error_of_gradient(around(matrix, inputs), rounding(matrix), rounding(matrix))
    assert found == pytest.approx((15 / 60) ** 0.5, rel=0.2)


@pytest.mark.parametrize(("entries", "unknowns"), [(75, 100), (600, 800)])
def test_fewer_entries_than_inputs_leave_the_others_open(entries: int, unknowns: int) -> None:
    """Exactly of few unknowns; of many, a Krylov space shows at least what a count does."""
    matrix, inputs = drawn(entries, unknowns), drawn(1, unknowns, seed=1)
    found = error_of_gradient(around(matrix, inputs), rounding(matrix), rounding(matrix))
    assert found == pytest.approx((1 - entries / unknowns) ** 0.5, rel=0.15)


@pytest.mark.parametrize("direction", ["scale", "brightness"])
def test_a_layer_that_normalises(direction: str) -> None:
    """One direction of 40 is open, that in which all inputs vary: by their whole distance."""
    inputs = drawn(1, 40, seed=1)
    one = inputs.flatten() if direction == "scale" else torch.ones(40, dtype=torch.float64)
    one = one / one.norm()
    matrix = drawn(200, 40)
    matrix = matrix - torch.outer(matrix @ one, one)
    found = error_of_gradient(around(matrix, inputs), rounding(matrix), rounding(matrix))
    assert found is not None
    assert 0.9 < found < 1.1


def test_noise_on_the_gradient_spreads_the_inputs() -> None:
    matrix, inputs = drawn(400, 40), drawn(1, 40, seed=1)
    added = 2.0 * drawn(400, seed=2)
    spread = float(2.0 * torch.linalg.inv(matrix.T @ matrix).trace().sqrt() / inputs.norm())
    # At the least squares solution; the error of any other is that besides.
    shift = torch.linalg.lstsq(matrix, added[:, None]).solution[:, 0]
    left = added - matrix @ shift
    found = error_of_gradient(around(matrix, inputs), left, rounding(matrix))
    assert found == pytest.approx(spread, rel=0.25)


def test_noise_that_is_searched_too_can_stand_in_for_the_inputs() -> None:
    matrix, inputs = drawn(100, 10), drawn(1, 10, seed=1)
    known = error_of_gradient(around(matrix, inputs), rounding(matrix), rounding(matrix))
    searched = error_of_gradient(
        around(matrix, inputs, of_noise=matrix), rounding(matrix), rounding(matrix)
    )
    assert known is not None
    assert searched is not None
    assert known < 1e-3
    assert searched > 0.3


def test_signs_leave_the_sizes_open() -> None:
    """Of three entries whose signs tell one number: precision 3 beside the prior's 1."""
    matrix, inputs = torch.tensor([[1.0], [2.0], [-1.0]]).double(), torch.tensor([[3.0]]).double()
    unknown = torch.full((3,), math.inf, dtype=torch.float64)
    assert error_of_signs(around(matrix, inputs), unknown) == pytest.approx(0.5, rel=1e-4)
    nearly = error_of_signs(around(matrix, inputs), torch.full_like(unknown, 1e-3))
    assert nearly is not None
    assert nearly < 1e-3


def test_entries_that_are_always_0_tell_nothing() -> None:
    matrix, inputs = torch.zeros(5, 3).double(), drawn(1, 3)
    unknown = torch.full((5,), math.inf, dtype=torch.float64)
    found = error_of_signs(around(matrix, inputs), unknown)
    assert found is not None
    assert found >= 1


def test_moves_by_half_change_a_plain_copy_by_half() -> None:
    matrix, inputs = torch.eye(30).double(), drawn(1, 30)
    case = around(matrix, inputs)
    found = moved_by_half(case, inputs.flatten())
    assert found <= 0.25 * float(inputs.square().sum()) * (1 + 1e-9)
    assert found > 0.05 * float(inputs.square().sum())


def test_too_large_models_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, inputs = drawn(60, 10), drawn(1, 10, seed=1)
    monkeypatch.setattr(uncertainty, "WORK", 100.0)
    assert error_of_gradient(around(matrix, inputs), rounding(matrix), rounding(matrix)) is None


@pytest.mark.parametrize("largest", [5.0, 5e4])
def test_columns_of_other_scales(largest: float) -> None:
    """A table's row that is not standardised: each column counts in units of its own."""
    scale = torch.tensor([largest, 40.0, 1.0, 0.3, 3.0, 7.0]).double()
    matrix = drawn(60, 6) / scale
    inputs = (drawn(1, 6, seed=1).sign() * (1 + drawn(1, 6, seed=2).abs())) * scale
    exact = error_of_gradient(around(matrix, inputs), rounding(matrix), rounding(matrix))
    assert exact is not None
    assert exact < 1e-3
    if largest > 1e3:
        off = torch.tensor([0.0, 0, 0, 1, 0, 0]).double() * inputs[0]
        found = error_of_gradient(around(matrix, inputs), matrix @ off, rounding(matrix))
        assert found == pytest.approx((1 / 6) ** 0.5, rel=0.1)


def test_rounding_of_large_entries_is_not_spread_over_small_ones() -> None:
    matrix = torch.cat([1e5 * drawn(60, 6), drawn(60, 6, seed=3)])
    matrix[:60, 3:] = 0
    inputs = drawn(1, 6, seed=1)
    kept = 1e-7 * (matrix @ inputs[0]).abs()
    missed = 5 * kept * drawn(120, seed=4).clamp(-3, 3)
    found = error_of_gradient(around(matrix, inputs), missed, kept)
    assert found is not None
    assert found < 1e-3
    # As much, at entries where rounding does not explain it.
    found = error_of_gradient(around(matrix, inputs), missed.flip(0), kept)
    assert found is not None
    assert found > 1e-3
