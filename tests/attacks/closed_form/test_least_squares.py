"""Solutions, their errors and ranks, against matrices of known rank."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fedleak.attacks.closed_form.least_squares import PATIENCE, Equations, Solution, solve
from tests.attacks.closed_form.layer_cases import rand


def test_rank_and_error_of_equations_that_do_not_determine_all() -> None:
    """A matrix of known rank: what lies in its null space is not known, and the rest is."""
    size, rank = 30, 21
    matrix = rand(50, size)
    matrix[:, rank:] = 0
    truth = rand(1, size, seed=3)
    equations = Equations(lambda x: [x @ matrix.T], [truth @ matrix.T], truth.shape)
    solution = solve(equations, iterations=500, seed=0)
    torch.testing.assert_close(solution.value[:, :rank], truth[:, :rank], rtol=1e-5, atol=1e-5)
    assert float(solution.error[:, :rank].max()) < 1e-4
    assert float(solution.error[:, rank:].min()) > 1e-3
    assert abs(solution.rank - rank) <= 6  # an estimate, from one random vector


def test_blocks_weigh_alike_whatever_their_units() -> None:
    first, second = rand(8, 6), rand(9, 6, seed=1)
    truth = rand(1, 6, seed=2)

    def blocks(x: Tensor) -> list[Tensor]:
        return [x @ first.T, 1e6 * (x @ second.T)]

    equations = Equations(blocks, list(blocks(truth)), truth.shape)
    left = equations.apply(torch.eye(6, dtype=torch.float64))
    for part in left.split([8, 9], dim=1):
        assert float(torch.linalg.matrix_norm(part, 2)) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(("noise", "seeds"), list(itertools.product((1e-6, 1e-3), [3])))
def test_estimated_error_follows_the_noise(noise: float, seeds: int) -> None:
    """Where more is unexplained than rounding, errors are larger by as much."""
    matrix = rand(60, 30)
    truth = rand(1, 30, seed=5)
    ratios = []
    for seed in range(seeds):
        right = truth @ matrix.T
        right = right * (1 + noise * rand(1, 60, seed=10 + seed))
        solution = solve(
            Equations(lambda x: [x @ matrix.T], [right], truth.shape), iterations=500, seed=seed
        )
        real = (solution.value - truth).square().mean().sqrt()
        ratios.append(float(solution.error.square().mean().sqrt() / real))
    assert 0.2 < float(np.mean(ratios)) < 5


def badly_conditioned(rank: int) -> Tensor:
    """A matrix ``(60, 40)`` whose singular values fall from 1 to 1e-4, the last of them to 0."""
    rows, columns = (torch.linalg.qr(rand(60, 40, seed=seed))[0] for seed in (20, 21))
    values = torch.logspace(0, -4, 40, dtype=torch.float64)
    return rows * torch.where(torch.arange(40) < rank, values, 0.0) @ columns[:40].T


@pytest.mark.parametrize("rank", [40, 31])
def test_the_matrix_of_all_unknowns_saves_the_iterations(rank: int) -> None:
    """What LSMR needs more than the patience for; the solution is that of a dense solver."""
    matrix = badly_conditioned(rank)
    right = rand(1, 40, seed=3) @ matrix.T
    asked: list[float] = []

    def whole(scales: Sequence[float]) -> Tensor:
        asked.extend(scales)
        return scales[0] * matrix.T @ matrix

    def solved(given: Callable[[Sequence[float]], Tensor] | None) -> Solution:
        equations = Equations(lambda x: [x @ matrix.T], [right], (1, 40), whole=given)
        return solve(equations, iterations=PATIENCE + 5, seed=0)

    found = solved(whole)
    (scale,) = asked
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    assert scale == pytest.approx(norm**-2, rel=0.1)
    assert abs(found.rank - rank) <= (0 if rank == 40 else 6)  # an estimate
    # What the equations determine is that of the solution of least norm.
    within = torch.linalg.pinv(matrix, rtol=1e-6) @ matrix
    expected = right @ torch.linalg.pinv(matrix, rtol=1e-6).T
    torch.testing.assert_close(found.value @ within.T, expected, rtol=1e-5, atol=1e-5)
    assert float((solved(None).value @ within.T - expected).norm()) > 1e-3


def test_equations_that_few_iterations_solve_need_no_matrix() -> None:
    matrix = torch.linalg.qr(rand(50, 30))[0]

    def whole(_scales: Sequence[float]) -> Tensor:
        raise AssertionError("the matrix was asked for")

    truth = rand(1, 30, seed=3)
    equations = Equations(lambda x: [x @ matrix.T], [truth @ matrix.T], (1, 30), whole=whole)
    found = solve(equations, iterations=500, seed=0)
    torch.testing.assert_close(found.value, truth, rtol=1e-6, atol=1e-6)


def test_a_matrix_without_a_factor_is_left_out() -> None:
    matrix = badly_conditioned(40)
    truth = rand(1, 40, seed=3)

    def whole(_scales: Sequence[float]) -> Tensor:
        return -torch.eye(40, dtype=torch.float64)

    equations = Equations(lambda x: [x @ matrix.T], [truth @ matrix.T], (1, 40), whole=whole)
    found = solve(equations, iterations=2000, seed=0)
    plain = solve(
        Equations(lambda x: [x @ matrix.T], [truth @ matrix.T], (1, 40)), iterations=2000, seed=0
    )
    assert torch.equal(found.value, plain.value)
    assert found.residual < 1e-6
