"""Inputs of linear layers for every sample of a batch, unmixed from the batch's gradient.

For B samples, the gradient of a layer ``y = W h + b`` with respect to W and b together is
``D^T [H, 1]``: the rows of D are the gradients with respect to the outputs of the samples, those of
H their inputs. So the rows of ``[H, 1]`` lie in the span of the first B right singular vectors R of
that gradient: ``[H, 1] = M R`` with a B x B mixing matrix M, however large the layer is.

The model itself determines M. Evaluated from the inputs M R on, with the noise after the layer
restored from the inputs of later layers, it has to yield the client's gradient:
``c D(M)^T M = Q`` with known ``Q = G R^T``, one equation per output and singular vector, and the
last column of M R has to be 1. The factor c is 1 unless the client scales its gradient, as by
clipping.

The classifier is unmixed first, since only the loss follows it, then the layers before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedleak.attacks.closed_form.linear import KnownInput, invertible_linear
from fedleak.attacks.closed_form.noise import Head, Loss, restore_noise
from fedleak.attacks.module_calls import Call
from fedleak.models.noise import Noise
from fedleak.updates.files import Tensors

Vector = np.ndarray[Any, np.dtype[np.float64]]

# Number of random starts; the first ones use the smaller of the two relative spreads.
STARTS = 8
SMALL_SPREAD_STARTS = 4
SPREADS = (0.1, 0.6)
EVALUATIONS = 100
# Relative residual of the gradient below which a solution is accepted without further starts, and
# the largest one that is accepted at all.
CONVERGED = 1e-5
TOLERANCE = 1e-2
# Largest relative change of one sample's output gradient when another sample changes.
INDEPENDENT = 1e-6
# Relative rounding error of a float32 gradient.
ROUNDING = 1e-7
# Step of the finite differences, relative to the largest entry of the mixing matrix.
STEP = 1e-6
# Singular values of the output gradients below this share of the largest are dropped in a start.
SINGULAR = 1e-3


class _RowSpace(NamedTuple):
    """Span of the rows ``[input, 1]`` of a batch.

    Args:
        basis: R, ``(samples, in + 1)``, with orthonormal rows.
        products: Q, the gradient times R transposed, ``(out, samples)``.
        angle_error: error of each row of R, in radians, ``(samples,)``.
    """

    basis: Tensor
    products: Tensor
    angle_error: Tensor

    def inputs(self, mixing: Tensor) -> Tensor:
        """The inputs ``(samples, in)`` that a mixing matrix yields."""
        return mixing @ self.basis[:, :-1]


@dataclass
class Unmixing:
    """Result of :func:`unmix`.

    Args:
        inputs: layer name -> inputs ``(samples, in)``, for the layers that were unmixed.
        noise: slot -> noise ``(samples, ...)``, for the slots after the earliest of these layers.
        factor: the factor by which the client scaled the gradient, estimated at that layer.
        findings: one sentence per layer on how it went.
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
    """Unmix the linear layers from the last one on, until all noise slots follow the last unmixed.

    It ends earlier if the gradient of a layer does not have the batch's rank (as for two samples
    with equal features, or as many samples as classes), or if no mixing matrix explains it.

    Args:
        model: a float64 copy of the model; in training mode its batch-norm statistics change.
        loss: the loss of a batch.
        batch: inputs and labels; of the inputs, only the shape is used.
        calls: the model's calls on this batch, with the modules of ``model``.
        gradient: gradient of the batch, by parameter name.
        generator: source of the random starts.
    """
    samples, found = len(batch[0]), Unmixing()
    layers = {call.name for call in invertible_linear(gradient, calls, samples)}
    for at in reversed(range(len(calls))):
        name = calls[at].name
        if name not in layers:
            continue
        own = {part: gradient[f"{name}.{part}"] for part in ("weight", "bias")}
        if zeros := [part for part, value in own.items() if not bool(value.any())]:
            found.findings.append(f"the gradient of {name}.{zeros[0]} is 0")
            continue
        rows = _row_space(own["weight"], own["bias"], samples)
        if rows is None:
            found.findings.append(
                f"the gradient of {name} does not have rank {samples}, the number of samples"
            )
            break
        try:
            solution = _Mixing(model, loss, batch, calls, at, rows, found.inputs).solve(generator)
        except _NotUnmixed as reason:
            found.findings.append(f"the inputs of {name} cannot be unmixed: {reason}")
            break
        found.inputs[name] = solution.known
        found.noise, found.factor = found.noise | solution.noise, solution.factor
        found.findings.append(
            f"inputs of {name} unmixed, error {solution.known.error:.1e}, relative residual of its "
            f"gradient {solution.residual:.1e}"
        )
        if not any(isinstance(call.module, Noise) for call in calls[:at]):
            break
    return found


class _NotUnmixed(Exception):
    """Why the inputs of a layer cannot be unmixed."""


class _Solution(NamedTuple):
    """For one layer: its inputs, the noise after it, the factor and the relative residual."""

    known: KnownInput
    noise: Tensors
    factor: float
    residual: float


def _row_space(weight: Tensor, bias: Tensor, samples: int) -> _RowSpace | None:
    """The row space of a layer's gradient, None if its rank is below the number of samples."""
    whole = torch.cat([weight, bias[:, None]], dim=1).double()
    left, sizes, right = torch.linalg.svd(whole, full_matrices=False)
    if len(sizes) < samples:
        return None
    rest = sizes[samples:]
    noise = max(float(rest[0]) if len(rest) else 0.0, ROUNDING * float(sizes[0]) / samples)
    if float(sizes[samples - 1]) < 10 * noise:
        return None
    products = left[:, :samples] * sizes[:samples]
    return _RowSpace(right[:samples], products, noise / sizes[:samples])


class _Mixing:
    """The equations for the mixing matrix of one layer and the factor, in this order.

    The unknowns are one vector, the point: the matrix row by row, then the factor.

    Args:
        model: see :func:`unmix`.
        loss: see :func:`unmix`.
        batch: see :func:`unmix`.
        calls: the model's calls.
        at: index of the layer's call.
        rows: row space of the layer's gradient.
        later: layer name -> inputs of the layers after it that were unmixed.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batch: tuple[Tensor, Tensor],
        calls: Sequence[Call],
        at: int,
        rows: _RowSpace,
        later: dict[str, KnownInput],
    ) -> None:
        self._model, self._loss, self._batch = model, loss, batch
        self._calls = calls[at:]
        # A module that is called again after the layer has to compute.
        needed = {id(call.module) for call in self._calls}
        self._before = [call for call in calls[:at] if id(call.module) not in needed]
        self._rows, self._later = rows, later
        self._samples = len(batch[0])
        self._next = next((call.name for call in calls[at + 1 :] if call.name in later), None)
        self._norm = rows.products.norm()

    def solve(self, generator: torch.Generator) -> _Solution:
        """The best solution of several starts of the Levenberg-Marquardt method.

        Args:
            generator: source of the random starts.

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
                    self._residuals, start, self._jacobian, method="lm", max_nfev=EVALUATIONS
                )
            except (ValueError, np.linalg.LinAlgError):  # it diverged
                continue
            residual = float(self._gradient_residual(found.x).norm())
            if residual < least:
                best, least = found.x, residual
            if least <= CONVERGED:
                break
        if best is None:
            raise _NotUnmixed("no start converged")
        if not least <= TOLERANCE:
            raise _NotUnmixed(f"relative residual of its gradient {least:.1e}")
        known = self._known(best)
        noise, failed = restore_noise(self._head(best), self._calls, self._later)
        if failed or not known.trusted:
            raise _NotUnmixed(f"relative standard error {known.error:.1e}")
        return _Solution(known, noise, float(best[-1]), least)

    def _check(self) -> None:
        """Check that the noise after the layer can be recovered and samples are independent."""
        equal = self._point(self._equal_mixing(), 1.0)
        head = self._head(equal)
        _, failed = restore_noise(head, self._calls, self._later)
        if failed:
            raise _NotUnmixed(f"the noise of {', '.join(failed)} cannot be recovered")
        gradients, _ = self._evaluate(equal)
        if not (bool(gradients.isfinite().all()) and bool(gradients.any())):
            raise _NotUnmixed("the gradient at its output is 0 or not finite")
        mixing = self._equal_mixing().clone()
        mixing[0] *= 1.1
        moved, _ = self._evaluate(self._point(mixing, 1.0))
        if float((moved - gradients)[1:].norm()) > INDEPENDENT * float(gradients.norm()):
            raise _NotUnmixed("samples depend on each other after it, as in a batch norm")

    def _known(self, point: Vector) -> KnownInput:
        """The inputs, with the relative standard error of the worst sample."""
        mixing, _ = self._parts(point)
        value = self._rows.inputs(mixing)
        # Rounding bounds the residual variance from below.
        residual = self._gradient_residual(point)
        jacobian = self._jacobian(point)
        spare = max(len(jacobian) - len(point), 1)
        variance = max(float(residual.square().sum()) / spare, ROUNDING**2 / residual.numel())
        _, sizes, axes = np.linalg.svd(jacobian, full_matrices=False)
        spread = variance * (axes**2 / np.maximum(sizes, 1e-300)[:, None] ** 2).sum(axis=0)
        by_sample = torch.from_numpy(spread[:-1]).reshape(self._samples, -1).sum(dim=1)
        by_sample += (mixing * self._rows.angle_error).square().sum(dim=1)
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
        value = self._rows.inputs(self._parts(point)[0]).reshape(self._calls[0].input.shape)
        layer = self._calls[0].name
        return Head(self._model, self._loss, self._batch, layer, value, self._before)

    def _evaluate(self, point: Vector) -> tuple[Tensor, Tensor]:
        """Gradients at the layer's output, and errors at the next unmixed layer's input.

        Both have one row per sample; the latter has no columns if no later layer was unmixed.
        """
        head = self._head(point)
        noise, _ = restore_noise(head, self._calls, self._later)
        gradients = head.output_gradient(noise).reshape(self._samples, -1)
        if self._next is None:
            return gradients, gradients[:, :0]
        wanted = self._later[self._next].value
        given = head.input_of(self._next, noise).reshape(wanted.shape)
        return gradients, (given - wanted) / wanted.norm()

    def _gradient_residual(self, point: Vector) -> Tensor:
        """Residual of the gradient, ``(out, samples)``, relative to its norm."""
        return self._residual_for(point, self._evaluate(point)[0])

    def _residual_for(self, point: Vector, gradients: Tensor) -> Tensor:
        mixing, factor = self._parts(point)
        residual: Tensor = (factor * gradients.mT @ mixing - self._rows.products) / self._norm
        return residual

    def _residuals(self, point: Vector) -> Vector:
        """Residuals of the gradient, of the column of ones and of the next unmixed input."""
        gradients, errors = self._evaluate(point)
        ones = self._parts(point)[0] @ self._rows.basis[:, -1] - 1
        parts = (self._residual_for(point, gradients).flatten(), ones, errors.flatten())
        values: Vector = torch.cat(parts).numpy()
        return values

    def _jacobian(self, point: Vector) -> Vector:
        """Derivatives of :meth:`_residuals`, ``(equations, unknowns)``, by finite differences.

        A row of the mixing matrix belongs to one sample, and the gradient at that sample's output
        depends on this row alone: one pass serves an entry of every row.
        """
        mixing, factor = self._parts(point)
        gradients, errors = self._evaluate(point)
        step = STEP * float(mixing.abs().max())
        own = torch.eye(self._samples, dtype=mixing.dtype)
        columns = []
        for column in own:
            moved, next_ = self._evaluate(self._point(mixing + step * column, factor))
            by_gradient, by_error = (moved - gradients) / step, (next_ - errors) / step
            products = torch.einsum("io,ik->oki", by_gradient, mixing)
            products += torch.einsum("io,k->oki", gradients, column)
            products = products.flatten(0, 1) * factor / self._norm
            ones = own * (self._rows.basis[:, -1] @ column)
            later = torch.einsum("in,il->inl", by_error, own).flatten(0, 1)
            columns.append(torch.cat([products, ones, later]))
        by_mixing = torch.stack(columns, dim=2).flatten(1)
        by_factor = torch.zeros(len(by_mixing), 1, dtype=mixing.dtype)
        by_factor[: self._rows.products.numel(), 0] = (gradients.mT @ mixing / self._norm).flatten()
        values: Vector = torch.cat([by_mixing, by_factor], dim=1).numpy()
        return values

    def _equal_mixing(self) -> Tensor:
        """The mixing of least norm that yields the column of ones: all samples are equal."""
        last = self._rows.basis[:, -1]
        return (last / last.square().sum()).expand(self._samples, -1)

    def _starts(self, generator: torch.Generator) -> Iterator[Vector]:
        """Mixings from the output gradients of equal inputs, with random factors per entry.

        The factors tell the samples apart.
        """
        gradients, _ = self._evaluate(self._point(self._equal_mixing(), 1.0))
        for number in range(STARTS):
            factors = 1 + SPREADS[number >= SMALL_SPREAD_STARTS] * torch.randn(
                gradients.shape, generator=generator, dtype=gradients.dtype
            )
            inverse = torch.linalg.pinv((gradients * factors).mT, rtol=SINGULAR)
            mixing = inverse @ self._rows.products
            # The column of ones determines the factor.
            factor = float((mixing @ self._rows.basis[:, -1]).mean())
            start = self._point(mixing / factor, factor) if factor > 0 else None
            if start is not None and bool(np.isfinite(start).all()):
                yield start
