"""Factors of a gradient of low rank, and the level of its noise."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Additional columns of the range finder, which measure the noise.
SPARE = 16
# A direction counts from this many times the norm of the noise on.
ABOVE_NOISE = 3.0


@dataclass(frozen=True)
class Factors:
    """A matrix ``columns diag(sizes) rows`` plus noise.

    Args:
        columns: orthonormal columns, ``(out, rank)``.
        sizes: singular values above the noise, ``(rank,)``, descending.
        rows: orthonormal rows, ``(rank, in)``.
        noise: root mean square of an entry of the noise.
        weights: factors of the matrix's rows before it was factorised, ``(out,)``.
    """

    columns: Tensor
    sizes: Tensor
    rows: Tensor
    noise: float
    weights: Tensor

    @property
    def rank(self) -> int:
        """Number of directions above the noise."""
        return len(self.sizes)


def factorise(
    matrix: Tensor, most: int, floor: float, generator: torch.Generator, weights: Tensor
) -> Factors:
    """Factors of a matrix of known highest rank, by a random range finder.

    Halko, Martinsson, Tropp 2011, https://arxiv.org/abs/0909.4061, algorithms 4.4 and 5.1, with one
    power iteration. What lies outside the range of ``most`` directions is noise.

    Args:
        matrix: ``(out, in)``, float64.
        most: its highest rank without noise, at least 0.
        floor: lowest root mean square of an entry of the noise, from the model of rounding.
        generator: source of the random directions.
        weights: factors of the rows, ``(out,)``.
    """
    matrix = matrix * weights[:, None]
    height, width = matrix.shape
    size = min(most + SPARE, height, width)
    random = torch.randn(width, size, generator=generator, dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ random).Q
    basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    inner, sizes, rows = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    most = min(most, len(sizes))
    rest = matrix - (basis @ inner[:, :most] * sizes[:most]) @ rows[:most]
    spare = max((height - most) * (width - most), 1)
    noise = max(float(rest.norm()) / math.sqrt(spare), floor)
    least = ABOVE_NOISE * noise * (math.sqrt(height) + math.sqrt(width))
    rank = int((sizes[:most] > least).sum())
    return Factors(basis @ inner[:, :rank], sizes[:rank], rows[:rank], noise, weights)
