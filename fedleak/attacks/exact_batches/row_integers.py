"""A row of several 8-bit images, taken apart by integer relations between its entries.

Where n samples are active, row j of the first layer's gradient is ``sum_i a_i m_i / 255`` with
unknown real numbers ``a_i`` and vectors ``m_i`` of whole numbers from 0 to 255. Differences of
neighbouring pixels are small whole numbers for every image, and some whole-number combinations of n
+ 1 or more such differences are 0 for all n images at once: short vectors of a lattice, which LLL
finds (the orthogonal lattice of the hidden subset sum problem, Nguyen and Stern 1999). They
determine the span of the images, then ``a`` up to a unimodular matrix, then every pixel.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

LEVELS = 255
# Differences that the lattice is made of.
DIFFERENCES = 12
# Highest number of samples in a row.
MOST = 4
# Differences are taken from this range of their sizes, as shares of those that are not 0.
SIZES = (0.02, 0.3)
# Ratio of lengths between relations of all images and other vectors of the lattice.
GAP = 8.0
# Largest coefficient of an image in the reduced basis.
COEFFICIENT = 3
# Residuals up to this many standard deviations of the rounding are rounding.
ROUNDING = 6.0
# Share of the pixels that may not be explained.
UNEXPLAINED = 0.01


class Parts(NamedTuple):
    """Images of a row.

    Args:
        images: in [0, 1], whole levels, ``(images, entries)``.
        amplitudes: factor of each in the row, ``(images,)``.
    """

    images: Tensor
    amplitudes: Tensor


def take_apart(row: Tensor, shape: tuple[int, ...], rounding: float) -> list[Parts]:
    """The sets of images of whole levels that a row is a combination of.

    Args:
        row: ``(entries,)``, float64.
        shape: ``(C, H, W)`` of an image.
        rounding: standard deviation of the error of an entry.

    Returns:
        Sets of 2 to 4 images, the most likely first; empty if there is none, as for more images or
        too much rounding.
    """
    values = LEVELS * row
    noise = LEVELS * rounding
    chosen = _differences(values.reshape(shape), noise)
    if chosen is None:
        return []
    basis = _common_span(chosen, noise)
    if basis is None:
        return []
    factors = torch.linalg.lstsq(basis, chosen[:, None]).solution[:, 0]
    pixels = _whole_numbers(values, factors, noise)
    return [] if pixels is None else _images(values, pixels, noise)


def _differences(values: Tensor, noise: float) -> Tensor | None:
    """Small differences of neighbouring pixels, each of another size."""
    found = torch.cat([values.diff(dim=2).flatten(), values.diff(dim=1).flatten()]).abs()
    found = found[found > 50 * noise].sort().values
    found = found[1:][found.diff() > 50 * noise]
    low, high = (int(share * len(found)) for share in SIZES)
    if high - low < 2 * DIFFERENCES:
        return None
    return found[torch.linspace(low, high, DIFFERENCES).long()]


def _common_span(differences: Tensor, noise: float) -> Tensor | None:
    """Integer basis of the span of the images' differences, ``(differences, images)``."""
    number = len(differences)
    scaled = [round(value) for value in (differences / (2 * noise)).tolist()]
    rows = [
        [scaled[i], *(int(i == j) for j in range(number))] for i in range(number)
    ]  # fmt: skip
    reduced = sorted(_reduced(rows), key=_length)
    lengths = [_length(row) ** 0.5 for row in reduced]
    for images in range(2, MOST + 1):
        if lengths[number - images] > GAP * lengths[number - images - 1]:
            relations = [row[1:] for row in reduced[: number - images]]
            return _kernel(relations, number, images)
    return None


def _kernel(relations: list[list[int]], number: int, dimension: int) -> Tensor | None:
    """A reduced basis of the whole numbers that satisfy all relations, ``(number, dimension)``."""
    large = 2**20
    rows = [
        [*(large * relation[i] for relation in relations), *(int(i == j) for j in range(number))]
        for i in range(number)
    ]
    reduced = sorted(_reduced(rows), key=_length)[:dimension]
    if any(value for row in reduced for value in row[: len(relations)]):
        return None
    kept = [row[len(relations) :] for row in reduced]
    return torch.tensor(kept, dtype=torch.float64).T


def _reduced(rows: list[list[int]]) -> list[list[int]]:
    """A lattice's basis, reduced by LLL (Lenstra, Lenstra, Lovasz 1982)."""
    # Imported here, since few attacks get this far.
    from sympy import ZZ
    from sympy.polys.matrices import DomainMatrix

    matrix = DomainMatrix([[ZZ(v) for v in row] for row in rows], (len(rows), len(rows[0])), ZZ)
    return [[int(v) for v in row] for row in matrix.lll().to_list()]


def _length(row: list[int]) -> int:
    return sum(value * value for value in row)


def _whole_numbers(values: Tensor, factors: Tensor, noise: float) -> Tensor | None:
    """Whole numbers ``(entries, images)`` whose combination by the factors has the values.

    By Babai's nearest plane in the lattice of the factors; None if it does not explain the values.
    """
    number = len(factors)
    scale = 1 / (2 * noise)
    rows = [
        [round(float(factors[i]) * scale), *(int(i == j) for j in range(number))]
        for i in range(number)
    ]
    basis = torch.tensor(_reduced(rows), dtype=torch.float64)
    target = torch.cat([values[:, None] * scale, values.new_zeros(len(values), number)], dim=1)
    upper = torch.linalg.qr(basis.T)
    left = target.clone()
    for at in reversed(range(number)):
        along = left @ upper.Q[:, at] / upper.R[at, at]
        left = left - along.round()[:, None] * basis[at]
    found = (target - left)[:, 1:].round()
    off = (values - found @ factors).abs() > ROUNDING * noise * (1 + number)
    return None if off.double().mean() > UNEXPLAINED else found


def _images(values: Tensor, pixels: Tensor, noise: float) -> list[Parts]:
    """Sets of combinations with whole coefficients that lie in 0 to 255 and make up the row."""
    number = pixels.shape[1]
    steps = range(-COEFFICIENT, COEFFICIENT + 1)
    coefficients = torch.tensor(list(itertools.product(steps, repeat=number)), dtype=torch.float64)
    coefficients = coefficients[coefficients.abs().sum(dim=1) > 0]
    combined = pixels @ coefficients.T
    inside = (combined.amin(dim=0) >= 0) & (combined.amax(dim=0) <= LEVELS)
    combined = combined[:, inside & (combined.amax(dim=0) > 0)]
    order = combined.sum(dim=0).argsort(descending=True)[:8]
    found = []
    for chosen in itertools.combinations(order.tolist(), number):
        images = combined[:, list(chosen)]
        fit = torch.linalg.lstsq(images, values[:, None], driver="gelsd")
        rest = values - images @ fit.solution[:, 0]
        if int(fit.rank) == number and float(rest.abs().median()) <= ROUNDING * noise:
            found.append(Parts(images.T / LEVELS, fit.solution[:, 0] ))
    return found
