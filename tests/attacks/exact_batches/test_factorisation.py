"""Factors against a full singular value decomposition, and the noise against what was added."""

import pytest
import torch

from fedleak.attacks.exact_batches.factorisation import factorise


def product(rank: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(50, rank, generator=generator, dtype=torch.float64)
    return left @ torch.randn(rank, 80, generator=generator, dtype=torch.float64)


def factors(matrix: torch.Tensor, most: int, floor: float = 1e-15, weights=None):
    weights = torch.ones(len(matrix), dtype=torch.float64) if weights is None else weights
    return factorise(matrix, most, floor, torch.Generator().manual_seed(1), weights)


def test_it_is_the_singular_value_decomposition() -> None:
    matrix = product(7)
    found = factors(matrix, 7)
    torch.testing.assert_close(found.columns * found.sizes @ found.rows, matrix)
    torch.testing.assert_close(found.sizes, torch.linalg.svdvals(matrix)[:7])


@pytest.mark.parametrize("noise", [1e-9, 1e-4])
def test_noise_is_measured_and_no_direction(noise: float) -> None:
    generator = torch.Generator().manual_seed(2)
    matrix = product(5) + noise * torch.randn(50, 80, generator=generator, dtype=torch.float64)
    found = factors(matrix, 8)
    assert found.rank == 5
    assert found.noise == pytest.approx(noise, rel=0.2)


def test_nothing_has_rank_0() -> None:
    assert factors(torch.zeros(50, 80, dtype=torch.float64), 4).rank == 0
    assert factors(product(3), 0).rank == 0


def test_rows_are_weighted() -> None:
    weights = torch.linspace(0, 2, 50, dtype=torch.float64)
    found = factors(product(4), 4, weights=weights)
    expected = weights[:, None] * product(4)
    torch.testing.assert_close(found.columns * found.sizes @ found.rows, expected)
