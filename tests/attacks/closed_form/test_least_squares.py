"""Solutions, their errors and ranks, against matrices of known rank."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from fedleak.attacks.closed_form.least_squares import Equations, solve
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
