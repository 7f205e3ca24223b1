"""A row of several 8-bit images, taken apart by integer relations between its entries.

Where n samples are active, row j of the first layer's gradient is ``sum_i a_i m_i / 255`` with
unknown real numbers ``a_i`` and vectors ``m_i`` of whole numbers from 0 to 255. Where the images
are smooth, differences of neighbouring pixels are small whole numbers for each of them, and some
whole-number combinations of n + 1 or more such differences are 0 for all n images at once: short
vectors of a lattice, which LLL finds (the orthogonal lattice of the hidden subset sum problem,
Nguyen and Stern 1999, https://doi.org/10.1007/3-540-48405-1_3). They determine the span of the
images' differences, then ``a`` up to a unimodular matrix, then every pixel.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from fedleak.attacks.exact_batches.lattice_reduction import reduced

LEVELS = 255
# Differences that the lattice is made of.
DIFFERENCES = 18
# Highest number of samples in a row.
MOST = 4
# Differences count from this many standard deviations of their rounding on.
LEAST = 20.0
# Ratio of lengths between relations of all images and other vectors of the lattice.
GAP = 3.0
# Largest coefficient of an image in the reduced basis.
COEFFICIENT = 3
# Images of which sets are made up, at most.
MOST_IMAGES = 8
# Residuals up to this many standard deviations of the rounding are rounding.
ROUNDING = 6.0
# Rounds in which the factors are fitted: what their errors multiply the rounding by, and the share
# of the differences, the smallest, that they are fitted to.
FITTING = ((8.0, 0.1), (4.0, 0.2), (4.0, 0.4), (2.0, 0.7), (1.0, 0.9))
# Rounding of a few operations in float64, relative.
OWN_ROUNDING = 2.0**-51
# Share of the pixels that may not be explained.
UNEXPLAINED = 0.02
# Differences by which a basis is reduced.
BASIS = 400
# Pixels by which factors are preselected.
PRESELECTED = 32


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
    # The arithmetic here is in float64, whose rounding adds to that of the row.
    values, noise = LEVELS * row, LEVELS * (rounding + OWN_ROUNDING * float(row.abs().max()))
    across, along = values.reshape(shape).diff(dim=2), values.reshape(shape).diff(dim=1)
    chosen = _smooth_differences(across, along, 2**0.5 * noise)
    if chosen is None:
        return []
    every = torch.cat([across.flatten(), along.flatten()])
    for basis in _common_spans(chosen, 2**0.5 * noise):
        factors = torch.linalg.lstsq(basis, chosen[:, None]).solution[:, 0]
        factors = _fitted(every, factors, 2**0.5 * noise)
        if not bool(factors.isfinite().all()):
            continue
        two = len(factors) == 2
        parts = _pairs(values, factors, noise) if two else _several(values, factors, noise)
        if parts:
            return parts
    return []


def _smooth_differences(across: Tensor, along: Tensor, noise: float) -> Tensor | None:
    """A difference of each of the pixels around which the row changes least."""
    around = torch.cat([across[:, :-1, :], along[:, :, :-1]]).abs().flatten(1)
    order = around.sum(dim=0).argsort()
    sizes = around[0, order]
    found: list[float] = []
    for size in sizes[sizes > LEAST * noise].tolist():
        if all(abs(size - other) > LEAST * noise for other in found):
            found.append(size)
        if len(found) == DIFFERENCES:
            return torch.tensor(found, dtype=across.dtype)
    return None


def _common_spans(differences: Tensor, noise: float) -> list[Tensor]:
    """Integer bases of what may be the span of the images' differences, ``(differences, images)``.

    Those of the largest gaps between lengths first.
    """
    number = len(differences)
    scaled = [round(value) for value in (differences / (2 * noise)).tolist()]
    short = reduced([[scaled[i], *_unit(i, number)] for i in range(number)])
    lengths = [sum(value * value for value in row) ** 0.5 for row in short]
    gaps = {
        images: lengths[number - images] / lengths[number - images - 1]
        for images in range(2, MOST + 1)
    }
    found = []
    for images in sorted(gaps, key=lambda images: -gaps[images]):
        relations = [row[1:] for row in short[: number - images]]
        basis = _kernel(relations, number, images) if gaps[images] > GAP else None
        if basis is not None:
            found.append(basis)
    return found


def _unit(at: int, size: int) -> list[int]:
    return [int(at == other) for other in range(size)]


def _kernel(relations: list[list[int]], number: int, dimension: int) -> Tensor | None:
    """A reduced basis of the whole numbers that satisfy all relations, ``(number, dimension)``."""
    large = 2**20
    rows = [
        [*(large * relation[i] for relation in relations), *_unit(i, number)]
        for i in range(number)
    ]  # fmt: skip
    short = reduced(rows)[:dimension]
    if any(value for row in short for value in row[: len(relations)]):
        return None
    kept = [row[len(relations) :] for row in short]
    return torch.tensor(kept, dtype=torch.float64).T


def _fitted(differences: Tensor, factors: Tensor, noise: float) -> Tensor:
    """The factors, fitted to more and larger differences from round to round."""
    order = differences.abs().argsort()
    for worse, share in FITTING:
        some = differences[order[: int(share * len(order))]]
        numbers = _whole_numbers(some, factors, worse * noise)
        fits = (some - numbers @ factors).abs() <= ROUNDING * worse * noise
        if int(fits.sum()) < 10 * len(factors):
            continue
        new = torch.linalg.lstsq(numbers[fits], some[fits, None], driver="gelsd")
        if int(new.rank) == len(factors):
            factors = new.solution[:, 0]
            factors = _of_short_basis(some[fits], numbers[fits], factors)
    return factors


def _of_short_basis(differences: Tensor, numbers: Tensor, factors: Tensor) -> Tensor:
    """The factors of a reduced basis of the whole numbers that many differences are."""
    chosen = torch.linspace(0, len(differences) - 1, min(BASIS, len(differences))).long()
    rows = [[int(value) for value in column] for column in numbers[chosen].T]
    try:
        short = torch.tensor(reduced(rows), dtype=torch.float64).T
    except ValueError:
        return factors
    change: Tensor = torch.linalg.lstsq(short, numbers[chosen], driver="gelsd").solution.round()
    return change @ factors


def _whole_numbers(values: Tensor, factors: Tensor, noise: float) -> Tensor:
    """Small whole numbers whose combination by the factors has the values, ``(values, images)``.

    By Babai's nearest plane in the lattice of the factors.
    """
    number = len(factors)
    scale = 1 / (2 * noise)
    rows = [[round(float(factors[i]) * scale), *_unit(i, number)] for i in range(number)]
    basis = torch.tensor(reduced(rows), dtype=torch.float64)
    target = torch.cat([values[:, None] * scale, values.new_zeros(len(values), number)], dim=1)
    upper = torch.linalg.qr(basis.T)
    left = target.clone()
    for at in reversed(range(number)):
        along = left @ upper.Q[:, at] / upper.R[at, at]
        left = left - along.round()[:, None] * basis[at]
    return (target - left)[:, 1:].round()


def _several(values: Tensor, factors: Tensor, noise: float) -> list[Parts]:
    """Sets of images, as whole combinations of the numbers that the reduced factors give."""
    number = len(factors)
    pixels = _whole_numbers(values, factors, noise)
    off = (values - pixels @ factors).abs() > ROUNDING * noise * number
    if float(off.double().mean()) > UNEXPLAINED:
        return []
    steps = range(-COEFFICIENT, COEFFICIENT + 1)
    coefficients = torch.tensor(list(itertools.product(steps, repeat=number)), dtype=torch.float64)
    coefficients = coefficients[coefficients.abs().sum(dim=1) > 0]
    some = pixels[torch.linspace(0, len(pixels) - 1, 4 * PRESELECTED).long()] @ coefficients.T
    possible = (some.amin(dim=0) >= 0) & (some.amax(dim=0) <= LEVELS)
    coefficients = coefficients[possible]
    combined = pixels @ coefficients.T
    inside = (combined.amin(dim=0) >= 0) & (combined.amax(dim=0) <= LEVELS)
    combined, left = combined[:, inside], coefficients[inside].tolist()
    # A sum of two others is no image of its own.
    sums = {tuple(map(sum, zip(*pair, strict=True))) for pair in itertools.combinations(left, 2)}
    order = [at for at, one in enumerate(left) if tuple(one) not in sums][:MOST_IMAGES]
    found = []
    for chosen in itertools.combinations(order, number):
        images = combined[:, list(chosen)]
        fit = torch.linalg.lstsq(images, values[:, None], driver="gelsd")
        rest = values - images @ fit.solution[:, 0]
        if int(fit.rank) == number and float(rest.abs().median()) <= ROUNDING * noise:
            found.append(Parts(images.T / LEVELS, fit.solution[:, 0]))
    return found


def _pairs(values: Tensor, factors: Tensor, noise: float) -> list[Parts]:
    """Pairs of images, with the factors in every basis of small whole numbers.

    For two images every first one's level can be tried, so that less precision is enough.
    """
    some = values[torch.linspace(0, len(values) - 1, PRESELECTED).long()]
    found = []
    for one, two, three, four in itertools.product(range(-2, 3), repeat=4):
        # Each pair of images once.
        if one * four - two * three != 1:
            continue
        own = torch.stack(
            [one * factors[0] + two * factors[1], three * factors[0] + four * factors[1]]
        )
        if _levels(some, own, noise) is None:
            continue
        levels = _levels(values, own, noise)
        if levels is not None:
            fit = torch.linalg.lstsq(levels, values[:, None], driver="gelsd").solution[:, 0]
            levels = _levels(values, fit, noise)
            if levels is not None:
                found.append(Parts(levels.T / LEVELS, fit))
    return found


def _levels(values: Tensor, factors: Tensor, noise: float) -> Tensor | None:
    """Levels of two images whose combination has the values, ``(values, 2)``; None if none has."""
    second = torch.arange(LEVELS + 1, dtype=values.dtype)
    rest = values[:, None] - factors[1] * second
    first = (rest / factors[0]).round()
    off = (rest - first * factors[0]).abs()
    off = torch.where((first < 0) | (first > LEVELS), torch.inf, off)
    least, at = off.min(dim=1)
    if float((least > ROUNDING * noise).double().mean()) > UNEXPLAINED:
        return None
    return torch.stack([first.gather(1, at[:, None])[:, 0], second[at]], dim=1)
