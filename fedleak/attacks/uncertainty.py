"""How far off a reconstruction may be, as far as its update tells.

An update can be explained by other inputs than the client's: where a search ended before it had
found them, where inputs can be moved without changing the update (a batch norm in train mode undoes
every scaling of its input), or where it is a step of Adam, of which only the gradient's signs are
left. The share that is explained does not show it, so the error is estimated here, by the Laplace
approximation: inputs and noise have a normal prior, the gradient depends on them linearly near the
reconstruction, and what the reconstruction leaves unexplained is normal as well.

With J the derivative of the gradient in the unknowns, S the variances of what is left unexplained
and P the prior's precision, the posterior covariance is ``(J^T S^-1 J + P)^-1``. It is projected to
a block Krylov space (Golub and Van Loan, Matrix Computations, 10.3.6), for which J and its
transpose are applied, by differences, to some tens of vectors.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedleak.updates.files import Tensors

# Dimensions of the Krylov space, at most and at least. Each takes two gradients; the product of
# samples, parameters and dimensions is limited.
MOST, LEAST, WORK = 64, 8, 3e7
# Difference step over the size of what is moved, and share of the largest singular value that is
# not told from 0, for a loss that is computed in float64 and in float32 (by central differences).
STEP = {True: 1e-6, False: 3e-3}
RESOLVED = {True: 1e-5, False: 3e-4}
# Random moves by half of the distance from the guess.
MOVES = 4
HALF = 0.5
# Entries differ in scale from this largest distance from the guess on, and from this ratio of it to
# this quantile; they vary by at least this share of that.
UNUSUAL, OTHER_SCALE, LOW, LOW_SHARE = 100.0, 1e3, 0.25, 0.1
# Numbers in a derivative that is computed column by column, which is more exact.
COLUMNS = 3e6
# What is missed is rounding up to this many times that of the entry, as of sums.
BY_ROUNDING = 30.0
# Vectors whose rest is smaller than this, of a length of 1, are dependent.
DEPENDENT = 1e-8
TINY = 1e-300
# Least spread of an entry, over the largest spread by rounding; of a gradient in float32, over its
# largest entry: smaller entries are rounding.
LOWEST, ROUNDED = 1e-4, 1e-6


class Estimate(NamedTuple):
    """How far off a reconstruction may be.

    Args:
        error: the error over the distance of the reconstruction from the guess.
        rest: share of what the reconstruction leaves unexplained, in norm, that moves of inputs and
            noise within the Krylov space do not explain either.
    """

    error: float
    rest: float = 0.0


@dataclass(frozen=True)
class Around:
    """An update around a reconstruction; vectors are ``(entries,)`` of the compared parameters.

    Args:
        gradient: the gradient of inputs and noise at the sent weights.
        input_gradient: the gradient of the loss in inputs (slot "") and noise, at the sent weights
            plus a vector.
        simulated: the update of inputs and noise.
        inputs: the reconstruction.
        noise: its noise, by slot.
        guess: a guess of the inputs without the update.
        weights: the sent weights.
        in_float64: whether the loss is computed in float64.
        least: least distance of the reconstruction from the guess.
    """

    gradient: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
    input_gradient: Callable[[Tensor], Tensors]
    simulated: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
    inputs: Tensor
    noise: Mapping[str, Tensor]
    guess: Tensor
    weights: Tensor
    in_float64: bool
    least: float = 0.0

    @property
    def distance(self) -> float:
        """Distance of the reconstruction from the guess, at least ``least``."""
        return max(self.least, float((self.inputs - self.guess).norm()))

    @property
    def unit(self) -> Tensor:
        """What each entry of the inputs varies by beforehand, in the shape of the inputs.

        It is the root mean square of the entries' distances from the guess. Where some are large
        and they differ by orders of magnitude, as of a table's columns that are not standardised,
        it is each entry's own distance, or a share of the lower ones.
        """
        own = (self.inputs - self.guess).abs().double()
        mean = torch.full_like(own, self.distance / own.numel() ** 0.5)
        most = float(own.max())
        if self.inputs.dim() > 2 or most < UNUSUAL:
            return mean
        low = float(own[own > 0].quantile(LOW))
        if most < OTHER_SCALE * low:
            return mean
        return own.clamp_min(LOW_SHARE * low)

    @property
    def dimensions(self) -> int:
        """See :func:`krylov_dimensions`."""
        return krylov_dimensions(len(self.inputs), len(self.weights))


def krylov_dimensions(samples: int, entries: int) -> int:
    """Number of dimensions of the Krylov space; 0 if the model is too large for any.

    Args:
        samples: number of samples.
        entries: number of entries of the compared parameters.
    """
    most = WORK / (samples * entries)
    return 0 if most < LEAST else min(MOST, int(most))


def error_of_gradient(around: Around, missed: Tensor, rounding: Tensor) -> Estimate | None:
    """The likely error of a reconstruction from a gradient, or from steps that are linear in it.

    Its parts are the step of Gauss and Newton from the reconstruction, which is the error itself
    where a search ended on the way, and the spread of the posterior.

    Args:
        around: the update around the reconstruction.
        missed: the client's gradient minus that of the reconstruction.
        rounding: error of each entry by rounding.

    Returns:
        The estimate. None if the model is too large.
    """
    # What rounding alone can miss is not spread over entries of another size.
    more = (missed.square() - (BY_ROUNDING * rounding).square()).clamp_min(0)
    spread = (rounding.square() + more.mean()).sqrt()
    # An entry that fits by chance must not decide alone, nor one that is exactly 0.
    spread = spread.clamp_min(max(LOWEST * float(rounding.max()), TINY**0.25))
    return _error(around, spread, missed, float((rounding / spread).square().mean()))


def error_of_signs(around: Around, known: Tensor) -> float | None:
    """The same from steps of Adam and its kin, which tell the signs of most of the entries.

    An entry of which the sign is known may change by its own size before that is wrong; as a
    spread, that gives the ellipsoid of Dikin, all of whose inputs have the same signs up to the
    curvature.

    Args:
        around: the update around the reconstruction.
        known: up to what each entry of the gradient is known besides its sign, infinite where it
            is not.
    """
    gradient = around.gradient(around.inputs, around.noise).abs()
    spread = torch.minimum(known, gradient)
    spread = spread.clamp_min(max(ROUNDED * float(gradient.max()), TINY**0.25))
    # Entries that are 0 whatever the inputs, as of inactive units, tell nothing.
    spread = torch.where(gradient > 0, spread, math.inf)
    found = _error(around, spread, None, 0.0)
    return None if found is None else found.error


def moved_by_half(around: Around, found: Tensor) -> float:
    """The least squared change of an update by moves of the inputs by half of their distance.

    Args:
        around: the update around the reconstruction.
        found: the update of the reconstruction.
    """
    inputs, off = around.inputs, around.inputs - around.guess
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(MOVES + 1, *inputs.shape, generator=generator, dtype=torch.float64)
    unit = around.unit.to(inputs) * inputs.numel() ** 0.5
    moves = [HALF * unit * one / one.norm() for one in normal[1:].to(inputs)]
    if float(off.norm()) >= around.distance:
        moves += [off * (HALF * normal[0].to(inputs)).expm1(), -HALF * off]
    changes = [around.simulated(inputs + move, around.noise) - found for move in moves]
    return min(float(change.square().sum()) for change in changes)


def _error(around: Around, spread: Tensor, missed: Tensor | None, floor: float) -> Estimate | None:
    """See :func:`error_of_gradient`.

    Args:
        around: the update around the reconstruction.
        spread: standard deviation of each entry of the gradient, up to a common factor if
            something was missed.
        missed: see :func:`error_of_gradient`. If None, nothing.
        floor: least square of that factor.
    """
    if not around.dimensions:
        return None
    derivative = _Derivative(around, spread)
    size = around.inputs.numel()
    # Directions in which all inputs vary together: in scale and in brightness.
    common = _orthonormal(
        [
            derivative.unknowns(around.inputs - around.guess),
            derivative.unknowns(torch.ones_like(around.guess)),
        ]
    )
    normal = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = derivative.padded(normal)
    other = other - common.T @ (common @ other)
    starts = [*common, other / other.norm().clamp_min(TINY)]
    wanted = None
    unknowns = len(other)
    # A column takes one gradient, and a dimension of the Krylov space two.
    if unknowns <= 2 * around.dimensions and unknowns * len(spread) <= COLUMNS:
        columns = derivative.columns()
        basis, image = torch.eye(unknowns, dtype=torch.float64), columns.T @ columns
        wanted = None if missed is None else columns.T @ (missed / spread)
    else:
        if missed is not None:
            wanted = derivative.transposed(missed / spread.square())
            starts.insert(0, wanted)
        basis, image = _krylov(derivative, starts, around.dimensions)
    precision, vectors = torch.linalg.eigh(basis @ image.T)
    vectors = basis.T @ vectors
    lost = RESOLVED[around.in_float64] ** 2 * precision[-1]
    precision = (precision - lost).clamp_min(0)
    factor, rest = 1.0, 0.0
    if missed is not None and wanted is not None:
        # Along what is not told from 0, this is the differences' error.
        wanted = torch.where(precision > 0, vectors.T @ wanted, 0.0)
        told = wanted.square() / precision.clamp_min(TINY)
        whole = float((missed / spread).square().sum())
        left = whole - float(told.sum())
        rest = (max(0.0, left) / max(whole, TINY)) ** 0.5
        live = int((derivative.base != 0).sum())
        factor = max(max(0.0, left) / max(1, live - len(basis)) + floor, TINY)
    # Each unknown varies by 1, and the common directions by the distance from the guess.
    seen = common @ vectors
    matrix = torch.diag(precision / factor + 1) - (1 - 1 / size) * seen.T @ seen
    root = torch.linalg.cholesky(matrix)

    def solved(vector: Tensor) -> Tensor:
        return torch.cholesky_solve(vector[:, None], root)[:, 0]

    *together, apart = (vectors.T @ one for one in (*common, starts[-1]))
    total = sum(float(one @ solved(one)) for one in together) / size
    total += float(apart @ solved(apart)) * (1 - len(common) / size)
    if wanted is not None:
        shift = vectors @ solved(wanted) / factor
        total += float(shift[:size].square().sum()) / size
    # Fewer equations than unknowns leave the others as uncertain as before, which a Krylov space of
    # few dimensions does not show.
    equations = int(((derivative.base != 0) & spread.isfinite()).sum())
    total = max(total, 1 - equations / unknowns)
    return Estimate(math.sqrt(max(0.0, total)), rest)


def _orthonormal(vectors: list[Tensor]) -> Tensor:
    found: list[Tensor] = []
    for vector in vectors:
        vector = vector / vector.norm().clamp_min(TINY)
        for own in found + found:
            vector = vector - (own @ vector) * own
        if float(vector.norm()) > DEPENDENT:
            found.append(vector / vector.norm())
    return torch.stack(found)


def _krylov(
    derivative: "_Derivative", starts: list[Tensor], dimensions: int
) -> tuple[Tensor, Tensor]:
    """An orthonormal basis ``(dimensions, unknowns)`` of a block Krylov space, and its image."""
    queue = list(starts)
    basis: list[Tensor] = []
    images: list[Tensor] = []
    whole = torch.zeros(0, len(starts[0]), dtype=torch.float64)
    while queue and len(basis) < dimensions:
        vector = queue.pop(0)
        vector = vector / vector.norm().clamp_min(TINY)
        for _ in range(2):
            vector = vector - whole.T @ (whole @ vector)
        if float(vector.norm()) < DEPENDENT:
            continue
        basis.append(vector / vector.norm())
        whole = torch.stack(basis)
        images.append(derivative.squared(basis[-1]))
        queue.append(images[-1])
    image = torch.stack(images)
    # Differences are symmetric up to their error.
    middle = whole @ image.T
    return whole, image + (0.5 * (middle - middle.T)) @ whole


class _Derivative:
    """The derivative J of the gradient in the unknowns, and ``J^T S^-1 J``.

    The unknowns are the entries of the inputs, each in its :attr:`Around.unit`, and those of the
    noise.

    Args:
        around: the update around the reconstruction.
        spread: square root of S, ``(entries,)``.
    """

    def __init__(self, around: Around, spread: Tensor) -> None:
        self._around, self._spread = around, spread
        self._precision = spread.square().reciprocal()
        self._step = STEP[around.in_float64]
        self._unit = around.unit
        self.base = around.gradient(around.inputs, around.noise)
        self._input_base = self._of_inputs(torch.zeros_like(around.weights))

    def padded(self, inputs: Tensor) -> Tensor:
        """Unknowns of which those of the noise are 0."""
        noise = sum(value.numel() for value in self._around.noise.values())
        return torch.cat([inputs.double(), torch.zeros(noise, dtype=torch.float64)])

    def unknowns(self, inputs: Tensor) -> Tensor:
        """The same of inputs in their shape and their own units."""
        return self.padded((inputs.double() / self._unit).flatten().cpu())

    def columns(self) -> Tensor:
        """``S^-1/2 J`` ``(entries, unknowns)``."""
        unit = torch.eye(len(self._input_base), dtype=torch.float64)
        return torch.stack([self._along(one, self._step) / self._spread for one in unit], dim=1)

    def squared(self, vector: Tensor) -> Tensor:
        """``J^T S^-1 J`` times unknowns of length 1."""
        # Each is moved by the step, in its unit.
        change = self._along(vector, self._step * len(vector) ** 0.5)
        return self.transposed(change.mul_(self._precision))

    def _along(self, vector: Tensor, step: float) -> Tensor:
        """``J`` times unknowns of length 1, by a step along them.

        In place: vectors of all parameters are long, and each new one takes longer than the sums.
        """
        if self._around.in_float64:
            return self._moved(step * vector).sub_(self.base).div_(step)
        return self._moved(step * vector).sub_(self._moved(-step * vector)).div_(2 * step)

    def transposed(self, vector: Tensor) -> Tensor:
        """``J^T`` times a vector of entries: how the inputs' gradient changes with the weights."""
        length = float(vector.norm())
        if not length:
            return torch.zeros_like(self._input_base)
        step = self._step * float(self._around.weights.norm().clamp_min(TINY)) / length
        if self._around.in_float64:
            return (self._of_inputs(step * vector) - self._input_base) / step
        return (self._of_inputs(step * vector) - self._of_inputs(-step * vector)) / (2 * step)

    def _moved(self, vector: Tensor) -> Tensor:
        around = self._around
        size = around.inputs.numel()
        moved = self._unit * vector[:size].reshape(around.inputs.shape)
        inputs = around.inputs + moved.to(around.inputs)
        noise, at = {}, size
        for slot, value in around.noise.items():
            noise[slot] = value + vector[at : at + value.numel()].reshape(value.shape).to(value)
            at += value.numel()
        return around.gradient(inputs, noise)

    def _of_inputs(self, offset: Tensor) -> Tensor:
        found = self._around.input_gradient(offset)
        parts = [(self._unit * found[""].double()).flatten()]
        parts += [found[slot].double().flatten() for slot in self._around.noise]
        return torch.cat(parts)
