"""How far off a reconstruction may be, as far as its update tells.

An update can be explained by other inputs than the client's: where a search ended before it had
found them, where inputs can be moved without changing the update (a batch norm in train mode undoes
every scaling of its input), or where it is a step of Adam, of which only the gradient's signs are
left. The share that is explained does not show it, so the error is estimated here, by the Laplace
approximation: inputs and noise have a normal prior around a guess, the update depends on them
linearly near the reconstruction, and what it leaves unexplained is normal as well.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Unknowns (entries of inputs and noise) that the derivatives are computed in: of more, a window.
MOST, WINDOW = 96, 32
# Rows that the derivatives of a larger update are compressed to.
ROWS = 4096
# Difference step over the size of the unknowns, and share of the largest singular value that is
# not told from 0, for a loss that is computed in float64 and in float32 (by central differences).
STEP = {True: 1e-6, False: 3e-3}
RESOLVED = {True: 1e-5, False: 3e-4}
# Random moves by half of the distance from the guess.
MOVES = 4
HALF = 0.5

Function = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Around:
    """An update around a reconstruction; vectors are ``(entries,)`` of the compared parameters.

    Args:
        gradient: the gradient of inputs and noise at the sent weights.
        simulated: their update.
        inputs: the reconstruction.
        noise: its noise, by slot.
        guess: a guess of the inputs without the update.
        in_float64: whether the loss is computed in float64.
    """

    gradient: Function
    simulated: Function
    inputs: Tensor
    noise: Mapping[str, Tensor]
    guess: Tensor
    in_float64: bool

    @property
    def distance(self) -> float:
        """Distance of the reconstruction from the guess."""
        return float((self.inputs - self.guess).norm())


def error_of_gradient(around: Around, missed: Tensor, rounding: Tensor) -> float:
    """The likely error of a reconstruction from a gradient, or from steps that are linear in it.

    It has three parts: how far one step of Gauss and Newton would move the inputs, which is the
    error itself where the search ended on the way; the spread of the inputs, given what is left
    unexplained as noise; and, where that is large, how far a random move changes the update as
    much, as in a local minimum.

    Args:
        around: the update around the reconstruction.
        missed: the client's gradient minus that of the reconstruction.
        rounding: error of each entry by rounding.

    Returns:
        The error over the distance of the reconstruction from the guess.
    """
    size = float(missed.square().mean())
    spread = (rounding.square() + size).clamp_min(1e-300).sqrt()
    found = _posterior(around, spread, missed, float((rounding / spread).square().mean()))
    return math.hypot(*found)


def error_of_signs(around: Around, known: Tensor) -> float:
    """The same from steps of Adam and its kin, which tell the signs of most of a gradient's entries.

    An entry of which the sign is known may change by its own size before that is wrong; as a
    spread, that gives the ellipsoid of Dikin, all of whose inputs have the same signs up to the
    curvature.

    Args:
        around: the update around the reconstruction.
        known: up to what each entry of the gradient is known besides its sign, infinite where it
            is not.
    """
    gradient = around.gradient(around.inputs, around.noise).abs()
    spread = torch.minimum(known, gradient).clamp_min(1e-300)
    # Entries that are 0 whatever the inputs, as of inactive units, tell nothing.
    spread = torch.where(gradient > 0, spread, math.inf)
    return math.hypot(*_posterior(around, spread, None, 0.0))


def moved_by_half(around: Around, found: Tensor) -> float:
    """The least squared change of an update by moves of the inputs by half of their distance.

    Args:
        around: the update around the reconstruction.
        found: the update of the reconstruction.
    """
    inputs, off = around.inputs, around.inputs - around.guess
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(MOVES + 1, *inputs.shape, generator=generator, dtype=torch.float64)
    moves = [HALF * around.distance * one / one.norm() for one in normal[1:].to(inputs)]
    scaled = off * (HALF * normal[0].to(inputs)).exp()
    moves += [scaled - off, -HALF * off]
    changes = [around.simulated(inputs + move, around.noise) - found for move in moves]
    return min(float(change.square().sum()) for change in changes)


def _posterior(
    around: Around, spread: Tensor, missed: Tensor | None, floor: float
) -> tuple[float, float]:
    """Shift and spread of the inputs, over the distance from the guess."""
    inputs, noise = around.inputs, dict(around.noise)
    size = around.distance / inputs.numel() ** 0.5
    places = _window(inputs, noise)
    rows = _Sketch(len(spread))
    base = around.gradient(inputs, noise)
    step = STEP[around.in_float64]

    def beside(slot: str, place: int, step: float) -> Tensor:
        values = {"": inputs, **noise}
        moved = values[slot].clone()
        moved.view(-1)[place] += step * (size if slot == "" else 1.0)
        values[slot] = moved
        return around.gradient(values.pop(""), values)

    columns = []
    for slot, place in places:
        if around.in_float64:
            change = (beside(slot, place, step) - base) / step
        else:
            change = (beside(slot, place, step) - beside(slot, place, -step)) / (2 * step)
        columns.append(rows(change / spread))
    number = sum(slot == "" for slot, _ in places)
    prior = _prior(around, [place for _, place in places[:number]], len(places), size)
    matrix = torch.stack(columns, dim=1) @ prior
    precision, vectors = torch.linalg.eigh(matrix.T @ matrix)
    precision = (precision - RESOLVED[around.in_float64] ** 2 * precision[-1]).clamp_min(0)
    factor, shift = 1.0, torch.zeros(len(places), dtype=matrix.dtype)
    if missed is not None:
        wanted = rows(missed / spread)
        inverse = torch.where(precision > 0, 1 / precision.clamp_min(1e-300), 0.0)
        coefficients = vectors.T @ (matrix.T @ wanted)
        left = wanted - matrix @ (vectors @ (inverse * coefficients))
        live = int((base != 0).sum())
        factor = float(left.square().sum()) / max(1, live - len(places)) + floor
        factor = max(factor, 1e-300)
        shift = prior @ vectors @ (coefficients / factor / (precision / factor + 1))
    spreads = ((prior @ vectors).square() / (precision / factor + 1)).sum(dim=1)
    of_inputs = (value[:number].mean() for value in (shift.square(), spreads))
    return tuple(float(value) ** 0.5 for value in of_inputs)  # type: ignore[return-value]


def _prior(around: Around, places: list[int], unknowns: int, size: float) -> Tensor:
    """A square root of the prior covariance, in units of the unknowns' standard deviations.

    Each unknown varies by itself, and each sample as a whole in scale and in brightness, which
    normalising layers undo.
    """
    off = (around.inputs - around.guess).double().cpu()
    sample = torch.tensor(places) // off[0].numel()
    window = off.flatten()[places] / size
    covariance = torch.eye(unknowns, dtype=torch.float64)
    for one in sample.unique():
        own = sample == one
        level = float(off[one].square().mean().sqrt()) / size
        for direction in (window * own, level * own.double()):
            whole = torch.cat([direction, torch.zeros(unknowns - len(places))])
            covariance += torch.outer(whole, whole)
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * values.clamp_min(0).sqrt() @ vectors.T
    return root


def _window(inputs: Tensor, noise: Mapping[str, Tensor]) -> list[tuple[str, int]]:
    """The unknowns, as slots and places in them, those of the inputs (no slot) first.

    Of many they are neighbours at the same place in all samples and channels: the entries that are
    most easily taken for each other.
    """
    total = inputs.numel() + sum(value.numel() for value in noise.values())
    if total <= MOST:
        found = [("", place) for place in range(inputs.numel())]
        return found + [(n, place) for n, value in noise.items() for place in range(value.numel())]
    places = torch.arange(inputs.numel()).reshape(inputs.shape)
    middle = [side // 2 for side in inputs.shape]
    width = 1
    while True:
        cut = places
        for dim in range(2 if inputs.dim() > 2 else 1, inputs.dim()):
            side = inputs.shape[dim]
            begin = max(0, min(middle[dim] - width // 2, side - width))
            cut = cut.narrow(dim, begin, min(width, side))
        if cut.numel() >= min(WINDOW, inputs.numel()) or width > max(inputs.shape):
            break
        width += 1
    flat = cut.flatten()
    keep = torch.linspace(0, len(flat) - 1, min(WINDOW, len(flat))).round().long().unique()
    return [("", int(place)) for place in flat[keep]]


class _Sketch:
    """Compresses vectors to few entries, nearly keeping their inner products (a count sketch).

    Args:
        size: number of entries; up to :data:`ROWS` are left as they are.
    """

    def __init__(self, size: int) -> None:
        self._small = size <= ROWS
        generator = torch.Generator().manual_seed(0)
        if not self._small:
            self._rows = torch.randint(ROWS, (size,), generator=generator)
            self._signs = torch.randint(2, (size,), generator=generator).double() * 2 - 1

    def __call__(self, vector: Tensor) -> Tensor:
        if self._small:
            return vector.double()
        rows = torch.zeros(ROWS, dtype=torch.float64)
        return rows.index_add_(0, self._rows, self._signs * vector.double())
