"""The inputs of linear layers of every sample of a batch, unmixed from the batch's gradient.

Of B samples, the gradient of a layer ``W h + b`` is ``D^T [H, 1]`` in W and b together, the rows of
D being the gradients of the samples' outputs and those of H their inputs. So the rows of ``[H, 1]``
lie in the space of its B right singular vectors R: ``[H, 1] = M R``, where M has B x B entries,
however large the layer is. Which ones they are, the model tells: from the inputs M R on, with the
noise behind the layer restored from the inputs of later ones, it has to give the very gradient that
the client sent. That is ``c D(M)^T M = Q`` with known Q, an equation for every sample and output;
the factor c is 1, unless the client scales its gradient, as by clipping.

The classifier is the first to be unmixed, as its loss is known, then the layers before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedleak.attacks.closed_form.linear import KnownInput, readable
from fedleak.attacks.closed_form.noise import Head, Loss, restore_noise
from fedleak.attacks.module_calls import Call
from fedleak.models.noise import Noise
from fedleak.updates.files import Tensors

Vector = np.ndarray[Any, np.dtype[np.float64]]

# Random starts, of which the first ones are less random than the others, and by how much.
STARTS = 8
CAUTIOUS = 4
SPREADS = (0.1, 0.6)
EVALUATIONS = 100
# A solution that leaves less than this of the gradient unexplained is the right one.
FOUND = 1e-5
# The most that it may leave.
TOLERANCE = 1e-2
# Of what leaves the layer of one sample, the most that may change with another sample.
INDEPENDENT = 1e-6
# Gradients are rounded to seven digits.
ROUNDING = 1e-7
# Of differences, as a share of the largest entry.
STEP = 1e-6
# Directions of the start that D tells nothing of, as a share of the largest.
SINGULAR = 1e-3


class _Rows(NamedTuple):
    """The space in which the rows ``[input, 1]`` of a batch lie.

    Args:
        basis: R, ``(samples, in + 1)``, with orthonormal rows.
        products: Q, the gradient times R transposed, ``(out, samples)``.
        blurred: how far off each row of R is, in radians, ``(samples,)``.
    """

    basis: Tensor
    products: Tensor
    blurred: Tensor

    def inputs(self, mixing: Tensor) -> Tensor:
        """The inputs of a mixing matrix, ``(samples, in)``."""
        return mixing @ self.basis[:, :-1]


@dataclass
class Unmixing:
    """What was found.

    Args:
        inputs: layer -> inputs ``(samples, in)``, those trusted alone.
        noise: slot -> noise ``(samples, ...)`` behind the earliest of these layers.
        factor: of the gradient of that layer, what the client has multiplied it with.
        findings: how it went, a sentence each.
    """

    inputs: dict[str, KnownInput] = field(default_factory=dict)
    noise: Tensors = field(default_factory=dict)
    factor: float = 1.0
    findings: list[str] = field(default_factory=list)


def unmix(
    model: nn.Module,
    loss: Loss,
    batch: tuple[Tensor, Tensor],
    calls: Sequence[Call],
    gradient: Tensors,
    *,
    generator: torch.Generator,
) -> Unmixing:
    """Unmix the layers from the last one on, until all noise is behind the one unmixed.

    It ends before, if a layer's gradient has not the rank of the batch (as of two samples whose
    features are equal, or of as many samples as classes), or no mixing explains it.

    Args:
        model: a float64 copy of the model; in train mode its batch-norm statistics move.
        loss: the loss of a batch.
        batch: inputs, whose shape alone counts, and labels.
        calls: the model's calls on this batch, of its own modules.
        gradient: the batch's gradient by parameter name.
        generator: where starts are drawn from.
    """
    samples, found = len(batch[0]), Unmixing()
    layers = {call.name for call in readable(gradient, calls, samples)}
    for at in reversed(range(len(calls))):
        name = calls[at].name
        if name not in layers:
            continue
        own = {part: gradient[f"{name}.{part}"] for part in ("weight", "bias")}
        if zeros := [part for part, value in own.items() if not bool(value.any())]:
            found.findings.append(f"the gradient of {name}.{zeros[0]} is 0")
            continue
        rows = _rows(own["weight"], own["bias"], samples)
        if rows is None:
            found.findings.append(f"the gradient of {name} has not the rank of {samples} samples")
            break
        try:
            solution = _Mixing(model, loss, batch, calls, at, rows, found.inputs).solve(generator)
        except _NotUnmixed as reason:
            found.findings.append(f"the inputs of {name} do not unmix: {reason}")
            break
        found.inputs[name] = solution.known
        found.noise, found.factor = found.noise | solution.noise, solution.factor
        found.findings.append(
            f"inputs of {name} unmixed, error {solution.known.error:.1e}, "
            f"{solution.missed:.1e} of its gradient unexplained"
        )
        if not any(isinstance(call.module, Noise) for call in calls[:at]):
            break
    return found


class _NotUnmixed(Exception):
    """Why the inputs of a layer do not unmix."""


class _Solution(NamedTuple):
    """Of one layer: its inputs, the noise behind it, the factor, and what is unexplained."""

    known: KnownInput
    noise: Tensors
    factor: float
    missed: float


def _rows(weight: Tensor, bias: Tensor, samples: int) -> _Rows | None:
    whole = torch.cat([weight, bias[:, None]], dim=1).double()
    left, sizes, right = torch.linalg.svd(whole, full_matrices=False)
    if len(sizes) < samples:
        return None
    rest = sizes[samples:]
    noise = max(float(rest[0]) if len(rest) else 0.0, ROUNDING * float(sizes[0]) / samples)
    if float(sizes[samples - 1]) < 10 * noise:
        return None
    products = left[:, :samples] * sizes[:samples]
    return _Rows(right[:samples], products, noise / sizes[:samples])


class _Mixing:
    """The equations for the mixing matrix of one layer, and the factor; unknowns in this order.

    Args:
        model, loss, batch: see :func:`unmix`.
        calls: the model's calls.
        at: number of the layer's.
        rows: of the layer.
        later: what is known of the inputs of later layers.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batch: tuple[Tensor, Tensor],
        calls: Sequence[Call],
        at: int,
        rows: _Rows,
        later: dict[str, KnownInput],
    ) -> None:
        self._model, self._loss, self._batch = model, loss, batch
        self._calls = calls[at:]
        # A module that is used again behind the layer has to compute.
        needed = {id(call.module) for call in self._calls}
        self._before = [call for call in calls[:at] if id(call.module) not in needed]
        self._rows, self._later = rows, later
        self._samples = len(batch[0])
        self._next = next((call.name for call in calls[at + 1 :] if call.name in later), None)
        self._size = rows.products.norm()

    def solve(self, generator: torch.Generator) -> _Solution:
        """The best solution of several starts.

        Raises:
            _NotUnmixed: if there is none.
        """
        # Imported here, since few attacks get this far.
        from scipy.optimize import least_squares

        self._check()
        best, least = None, float("inf")
        for start in self._starts(generator):
            try:
                found = least_squares(
                    self._missed, start, self._slopes, method="lm", max_nfev=EVALUATIONS
                )
            except (ValueError, np.linalg.LinAlgError):  # it ran away
                continue
            missed = float(self._unexplained(found.x).norm())
            if missed < least:
                best, least = found.x, missed
            if least <= FOUND:
                break
        if best is None:
            raise _NotUnmixed("no start led anywhere")
        if not least <= TOLERANCE:
            raise _NotUnmixed(f"{least:.1e} of its gradient unexplained")
        known = self._known(best)
        noise, failed = restore_noise(self._head(best), self._calls, self._later)
        if failed or not known.trusted:
            raise _NotUnmixed(f"an error of {known.error:.1e}")
        return _Solution(known, noise, float(best[-1]), least)

    def _check(self) -> None:
        """Whether the noise behind the layer is to be had, and samples are independent there."""
        even = self._point(self._even(), 1.0)
        head = self._head(even)
        _, failed = restore_noise(head, self._calls, self._later)
        if failed:
            raise _NotUnmixed(f"the noise of {', '.join(failed)} is not to be had")
        leaving, _ = self._passed(even)
        if not (bool(leaving.isfinite().all()) and bool(leaving.any())):
            raise _NotUnmixed("the loss does not depend on them alone")
        mixing = self._even().clone()
        mixing[0] *= 1.1
        moved, _ = self._passed(self._point(mixing, 1.0))
        if float((moved - leaving)[1:].norm()) > INDEPENDENT * float(leaving.norm()):
            raise _NotUnmixed("samples are not independent of each other behind it")

    def _known(self, point: Vector) -> KnownInput:
        """The inputs, and how well the equations determine those of the worst sample."""
        mixing, _ = self._parts(point)
        value = self._rows.inputs(mixing)
        # Rounding is the least that is unexplained.
        missed = self._unexplained(point)
        slopes = self._slopes(point)
        spare = max(len(slopes) - len(point), 1)
        variance = max(float(missed.square().sum()) / spare, ROUNDING**2 / missed.numel())
        _, sizes, axes = np.linalg.svd(slopes, full_matrices=False)
        spread = variance * (axes**2 / np.maximum(sizes, 1e-300)[:, None] ** 2).sum(axis=0)
        by_sample = torch.from_numpy(spread[:-1]).reshape(self._samples, -1).sum(dim=1)
        by_sample += (mixing * self._rows.blurred).square().sum(dim=1)
        error = float((by_sample / value.square().sum(dim=1)).max().sqrt())
        # The noise was restored from the inputs of later layers.
        return KnownInput(value, max(error, *(known.error for known in self._later.values()), 0.0))

    def _point(self, mixing: Tensor, factor: float) -> Vector:
        return np.append(mixing.flatten().numpy(), factor)

    def _parts(self, point: Vector) -> tuple[Tensor, float]:
        """The mixing matrix and the factor."""
        mixing = torch.from_numpy(point[:-1].copy()).reshape(self._samples, -1)
        return mixing, float(point[-1])

    def _head(self, point: Vector) -> Head:
        value = self._rows.inputs(self._parts(point)[0]).reshape(self._calls[0].entering.shape)
        layer = self._calls[0].name
        return Head(self._model, self._loss, self._batch, layer, value, self._before)

    def _passed(self, point: Vector) -> tuple[Tensor, Tensor]:
        """The gradient of the layer's output, and the next known input, a row for each sample."""
        head = self._head(point)
        noise, _ = restore_noise(head, self._calls, self._later)
        leaving = head.leaving_gradient(noise).reshape(self._samples, -1)
        if self._next is None:
            return leaving, leaving[:, :0]
        wanted = self._later[self._next].value
        given = head.input_of(self._next, noise).reshape(wanted.shape)
        return leaving, (given - wanted) / wanted.norm()

    def _unexplained(self, point: Vector) -> Tensor:
        """What is missed of the gradient, ``(out, samples)``, as shares of its norm."""
        return self._of_gradient(point, self._passed(point)[0])

    def _of_gradient(self, point: Vector, leaving: Tensor) -> Tensor:
        mixing, factor = self._parts(point)
        missed: Tensor = (factor * leaving.mT @ mixing - self._rows.products) / self._size
        return missed

    def _missed(self, point: Vector) -> Vector:
        """What is missed of the gradient, of the ones, and of the next known input."""
        leaving, given = self._passed(point)
        ones = self._parts(point)[0] @ self._rows.basis[:, -1] - 1
        parts = (self._of_gradient(point, leaving).flatten(), ones, given.flatten())
        values: Vector = torch.cat(parts).numpy()
        return values

    def _slopes(self, point: Vector) -> Vector:
        """How that changes with each unknown, ``(equations, unknowns)``.

        A row of the matrix is the mixing of one sample, and what leaves the layer of that sample
        depends on it alone: so an entry of every row is moved in one pass.
        """
        mixing, factor = self._parts(point)
        leaving, given = self._passed(point)
        step = STEP * float(mixing.abs().max())
        own = torch.eye(self._samples, dtype=mixing.dtype)
        columns = []
        for column in own:
            moved, next_ = self._passed(self._point(mixing + step * column, factor))
            left, there = (moved - leaving) / step, (next_ - given) / step
            products = torch.einsum("io,ik->oki", left, mixing)
            products += torch.einsum("io,k->oki", leaving, column)
            products = products.flatten(0, 1) * factor / self._size
            ones = own * (self._rows.basis[:, -1] @ column)
            columns.append(
                torch.cat([products, ones, torch.einsum("in,il->inl", there, own).flatten(0, 1)])
            )
        by_mixing = torch.stack(columns, dim=2).flatten(1)
        by_factor = torch.zeros(len(by_mixing), 1, dtype=mixing.dtype)
        by_factor[: self._rows.products.numel(), 0] = (leaving.mT @ mixing / self._size).flatten()
        values: Vector = torch.cat([by_mixing, by_factor], dim=1).numpy()
        return values

    def _even(self) -> Tensor:
        """The least mixing that gives the ones: all samples alike."""
        last = self._rows.basis[:, -1]
        return (last / last.square().sum()).expand(self._samples, -1)

    def _starts(self, generator: torch.Generator) -> Iterator[Vector]:
        """Mixings by the gradient that even inputs would have, disturbed to tell samples apart."""
        leaving, _ = self._passed(self._point(self._even(), 1.0))
        for number in range(STARTS):
            factors = 1 + SPREADS[number >= CAUTIOUS] * torch.randn(
                leaving.shape, generator=generator, dtype=leaving.dtype
            )
            mixing = torch.linalg.pinv((leaving * factors).mT, rtol=SINGULAR) @ self._rows.products
            # The ones tell the factor.
            factor = float((mixing @ self._rows.basis[:, -1]).mean())
            start = self._point(mixing / factor, factor) if factor > 0 else None
            if start is not None and bool(np.isfinite(start).all()):
                yield start
