"""Inputs of linear layers from gradients of which a known defence left out or changed entries.

For one sample, the gradients of a layer's bias and weight are the columns of one matrix of rank 1,
``d [1, h^T]``. With entries missing, bounded or noisy it is completed: rows and columns are fitted
in turn by weighted least squares to what is known (alternating least squares for low-rank matrix
completion, Jain et al., STOC 2013, https://arxiv.org/abs/1212.0467), so that a row whose bias entry
is missing, clipped or noisy is used as well.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fedleak.attacks.base import Problem
from fedleak.attacks.closed_form.linear import KnownInput
from fedleak.updates.entries import Entries
from fedleak.updates.files import Tensors
from fedleak.updates.naming import joined

# Sweeps of the fit to exact or noisy entries, and the relative change at which it has converged.
SWEEPS, CONVERGED = 200, 1e-12
# Steps of the power method for the first singular vectors.
POWER_STEPS = 30
# Sweeps in which entries that are known up to bounds are kept within them.
BOUNDED_SWEEPS = 60
# Relative rounding of an exact entry.
ROUNDING = 1e-7
# Weight of an entry outside its bounds, of which nothing else is known, relative to the others'.
LIGHT = 1e-3


class Completed(NamedTuple):
    """A completed gradient of a linear layer.

    Args:
        output: the gradient of the layer's output, ``(out,)``.
        input: the layer's input, and its error.
        rows: True where an entry of ``output`` is known, ``(out,)``; it is 0 elsewhere.
        missed: difference of the measured entries of bias and weight from it, ``(out, 1 + in)``;
            0 elsewhere.
    """

    output: Tensor
    input: KnownInput
    rows: Tensor
    missed: Tensor

    def gradient(self, layer: str) -> Tensors:
        """The gradients of weight and bias, by parameter name.

        Args:
            layer: name of the layer.
        """
        return {
            joined(layer, "weight"): torch.outer(self.output, self.input.value),
            joined(layer, "bias"): self.output,
        }


def completed(problem: Problem, layer: str) -> Completed | None:
    """Complete the gradient of a linear layer with bias of which a told defence changed entries.

    Args:
        problem: an update of one sample.
        layer: name of the layer.

    Returns:
        The completed gradient; None if its entries came as they were, or tell nothing.
    """
    names = [joined(layer, part) for part in ("weight", "bias")]
    if not problem.entries.keys() & set(names):
        return None
    weight, bias = (
        problem.entries.get(name) or Entries.exactly(problem.gradient[name]) for name in names
    )
    return complete(weight, bias)


def complete(weight: Entries, bias: Entries) -> Completed | None:
    """Complete the gradients of a linear layer's weight and bias of one sample.

    Args:
        weight: what is known of the gradient of the weight, ``(out, in)``.
        bias: what is known of the gradient of the bias, ``(out,)``.

    Returns:
        The completed gradient. An entry of the input in whose column nothing is measured is not
        known, and the value nearest to 0 that its bounds allow. The input's error is infinite if
        its scale is open. None if nothing is measured of the weight.
    """
    value, low, high, deviation = (
        torch.cat([one.double()[:, None], other.double()], dim=1)
        for one, other in (
            (bias.value, weight.value), (bias.lowest, weight.lowest),
            (bias.highest, weight.highest), (bias.deviation, weight.deviation),
        )
    )  # fmt: skip
    measured = deviation.isfinite()
    if not bool((measured & (value != 0))[:, 1:].any()):
        return None
    size = value[measured].square().mean().sqrt()
    floor = (ROUNDING * size).clamp_min(torch.finfo(value.dtype).tiny ** 0.25)
    weights = torch.where(measured, (deviation.square() + floor.square()).reciprocal(), 0.0)
    weights = weights / weights.max()
    target = torch.where(measured, value, 0.0)
    rows, columns = _start(target, weights)
    rows, columns = _fit(target, weights, rows, columns)
    # Of noisy entries with bounds, as quantised ones, and of those that are bounded alone.
    limited = (low.isfinite() | high.isfinite()) & (deviation > 0)
    noisy = measured & (deviation > 0)
    if bool(limited.any()):
        for _ in range(BOUNDED_SWEEPS):
            product = torch.outer(rows, columns)
            inside = torch.minimum(torch.maximum(product, low), high)
            missed = limited & ~measured & (product != inside)
            aim = torch.where(limited & (noisy | missed), inside, target)
            light = LIGHT * weights[measured].median()
            now = torch.where(missed, torch.maximum(weights, light), weights)
            before = columns
            rows, columns = _sweep(aim, now, rows, columns)
            if float((columns - before).norm()) <= CONVERGED * float(columns.norm()):
                break
    return _scaled(target, weights, rows, columns, (low, high))


def _start(target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns to begin with.

    The rows are the first column, which is the bias's, where it is measured, as signs that a fit
    begins with stay wrong where little connects them. Of noisy entries, and without any of the
    bias, they are the first singular vectors of what is measured.
    """
    tiny = torch.finfo(target.dtype).tiny
    rows = target[:, 0]
    exact = bool((weights[rows != 0, 0] == weights.max()).all()) and bool(rows.any())
    if exact:
        return rows, (rows @ (weights * target)) / (rows.square() @ weights).clamp_min(tiny)
    generator = torch.Generator().manual_seed(0)
    scaled = target * weights.sqrt()
    columns = torch.randn(target.shape[1], generator=generator, dtype=target.dtype).to(target)
    for _ in range(POWER_STEPS):
        rows = scaled @ (columns / columns.norm().clamp_min(tiny))
        columns = scaled.T @ (rows / rows.norm().clamp_min(tiny))
    return rows, columns / columns.norm().clamp_min(tiny)


def _sweep(target: Tensor, weights: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the rows to the columns, then the columns to the rows, of norm 1."""
    tiny = torch.finfo(target.dtype).tiny
    weighted = weights * target
    rows = (weighted @ columns) / (weights @ columns.square()).clamp_min(tiny)
    columns = (rows @ weighted) / (rows.square() @ weights).clamp_min(tiny)
    norm = columns.norm().clamp_min(tiny)
    return rows * norm, columns / norm


def _fit(target: Tensor, weights: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    for _ in range(SWEEPS):
        before = columns
        rows, columns = _sweep(target, weights, rows, columns)
        if float((columns - before).norm()) <= CONVERGED:
            break
    return rows, columns


def _scaled(
    target: Tensor, weights: Tensor, rows: Tensor, columns: Tensor, bounds: tuple[Tensor, Tensor]
) -> Completed:
    """Input and output's gradient, with the scale at which the first column's factor is 1."""
    tiny = torch.finfo(target.dtype).tiny
    infinite = float("inf")
    first = columns[0]
    product = torch.outer(rows, columns)
    entries = int((weights > 0).sum())
    freedom = max(1, entries - sum(target.shape))
    variance = float((weights * (product - target).square()).sum()) / freedom
    precision = rows.square() @ weights
    missed = torch.where(weights > 0, product - target, 0.0)
    measured = (weights @ columns.square()) > 0
    if not bool(first.abs() > tiny**0.5) or not bool(precision[0] > 0):
        return Completed(rows, KnownInput(columns[1:], infinite), measured, missed)
    output, entering = rows * first, columns[1:] / first
    known = precision[1:] > 0
    # Errors of the columns' factors of norm 1, each from its own column.
    errors = (variance / precision[1:][known]) / first.square()
    if not bool(known.all()):
        entering = torch.where(known, entering, _within_bounds(output, bounds))
    rms = entering.square().mean().sqrt().clamp_min(tiny)
    scale = variance / precision[0] / first.square()
    error = float(((errors.mean() + scale) / rms.square()).sqrt())
    return Completed(output, KnownInput(entering, error, known), measured, missed)


def _within_bounds(output: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """The values of the input nearest to 0 within the bounds of the matrix's entries.

    Args:
        output: the gradient of the layer's output.
        bounds: lowest and highest values of the matrix's entries.
    """
    low, high = (bound[:, 1:] for bound in bounds)
    usable = output.abs() > 0
    factor = output[usable, None]
    ends = low[usable] / factor, high[usable] / factor
    lowest = torch.minimum(*ends).amax(dim=0)
    highest = torch.maximum(*ends).amin(dim=0)
    return torch.zeros_like(lowest).maximum(lowest).minimum(torch.maximum(highest, lowest))
