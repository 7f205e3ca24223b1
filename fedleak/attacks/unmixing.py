"""The inputs of linear layers of every sample of a batch, unmixed from the batch's gradient.

Of B samples, the gradient of a layer ``W h + b`` is ``D^T [H, 1]`` in W and b together, the rows of
D being the gradients of the samples' outputs and those of H their inputs. So the rows of ``[H, 1]``
lie in the space of its B right singular vectors R: ``[H, 1] = M R``, where M has B x B entries,
however large the layer is. Which ones they are, the model tells: from the inputs M R on, with the
noise behind the layer restored from the inputs of later ones, it has to give the very gradient that
the client sent. That is ``D(M)^T M = Q`` with known Q, hundreds of equations for M.

The classifier is the first to be unmixed, as its loss is known, then the layers before it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn

from fedleak.attacks.calls import Call
from fedleak.attacks.closed_form import Head, KnownInput, Loss, readable, restore_noise
from fedleak.models.noise import Noise
from fedleak.updates import Tensors

Vector = np.ndarray[Any, np.dtype[np.float64]]

# Random starts, of which the first ones are less random than the others, and by how much.
STARTS = 24
CAUTIOUS = 8
SPREADS = (0.1, 0.6)
# A solution that leaves less than this of the gradient unexplained is the right one.
FOUND = 1e-5
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


class Unmixing(NamedTuple):
    """What was found.

    Args:
        inputs: layer -> inputs ``(samples, in)``, those trusted alone.
        noise: slot -> noise ``(samples, ...)`` behind the earliest of these layers.
        findings: how it went, a sentence each.
    """

    inputs: dict[str, KnownInput]
    noise: Tensors
    findings: list[str]


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
    features are equal), or no mixing explains it.

    Args:
        model: a float64 copy of the model.
        loss: the loss of a batch.
        batch: inputs, whose shape alone counts, and labels.
        calls: the model's calls on this batch.
        gradient: the batch's gradient by parameter name.
        generator: where starts are drawn from.
    """
    samples = len(batch[0])
    found = Unmixing({}, {}, [])
    layers = {call.name for call in readable(gradient, calls, samples)}
    for at in reversed(range(len(calls))):
        name = calls[at].name
        if name not in layers:
            continue
        rows = _rows(gradient[f"{name}.weight"], gradient[f"{name}.bias"], samples)
        if rows is None:
            found.findings.append(f"the gradient of {name} has not the rank of {samples} samples")
            break
        problem = _Mixing(model, loss, batch, calls, at, rows, found.inputs)
        mixing, missed = problem.solve(generator)
        known = problem.known(mixing)
        if not (missed <= problem.tolerance and known.trusted):
            found.findings.append(
                f"the inputs of {name} do not unmix: {missed:.1e} of its gradient unexplained"
            )
            break
        found.inputs[name] = known
        found.noise.update(problem.noise(mixing) or {})
        found.findings.append(
            f"inputs of {name} unmixed, error {known.error:.1e}, {missed:.1e} unexplained"
        )
        if not any(isinstance(call.module, Noise) for call in calls[:at]):
            break
    return found


def _rows(weight: Tensor, bias: Tensor, samples: int) -> _Rows | None:
    whole = torch.cat([weight, bias[:, None]], dim=1).double()
    left, sizes, right = torch.linalg.svd(whole, full_matrices=False)
    if len(sizes) < samples or not bool(sizes.any()):
        return None
    rest = sizes[samples:]
    noise = max(float(rest[0]) if len(rest) else 0.0, ROUNDING * float(sizes[0]) / samples)
    if float(sizes[samples - 1]) < 10 * noise:
        return None
    products = left[:, :samples] * sizes[:samples]
    return _Rows(right[:samples], products, noise / sizes[:samples])


class _Mixing:
    """The equations for the mixing matrix of one layer.

    Args:
        model, loss, batch: see :func:`unmix`.
        calls: the model's calls.
        at: number of the layer's.
        rows: of the layer.
        later: what is known of the inputs of later layers.
    """

    # What the right mixing may leave unexplained.
    tolerance = 1e-2

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
        self._before, self._calls = calls[:at], calls[at:]
        self._rows, self._later = rows, later
        self._samples = len(batch[0])
        self._next = next((call.name for call in calls[at + 1 :] if call.name in later), None)
        self._size = rows.products.norm()

    def solve(self, generator: torch.Generator) -> tuple[Tensor, float]:
        """The mixing matrix, and the share of the gradient that it leaves unexplained."""
        best, least = self._even(), float("inf")
        for start in self._starts(generator):
            found = least_squares(
                self._missed, start.flatten().numpy(), self._slopes, method="lm", max_nfev=200
            )
            mixing = self._mixing(found.x)
            missed = float(self._unexplained(mixing).norm())
            if missed < least:
                best, least = mixing, missed
            if least <= FOUND:
                break
        return best, least

    def noise(self, mixing: Tensor) -> Tensors | None:
        """The noise behind the layer; none if it is not to be had."""
        noise, failed = restore_noise(self._head(mixing), self._calls, self._later)
        return None if failed else noise

    def known(self, mixing: Tensor) -> KnownInput:
        """The inputs, and how well the equations determine them."""
        value = self._rows.inputs(mixing)
        # Rounding is the least that is unexplained.
        missed = self._unexplained(mixing)
        variance = max(float(missed.square().mean()), ROUNDING**2 / missed.numel())
        singular = np.linalg.svd(self._slopes(mixing.flatten().numpy()), compute_uv=False)
        spread = variance * float((1 / np.maximum(singular, 1e-300) ** 2).sum())
        spread += float((mixing * self._rows.blurred).square().sum())
        error = (spread / value.numel()) ** 0.5 / float(value.square().mean().sqrt())
        # The noise was restored from the inputs of later layers.
        return KnownInput(value, max(error, *(known.error for known in self._later.values()), 0.0))

    def _head(self, mixing: Tensor) -> Head:
        value = self._rows.inputs(mixing).reshape(self._calls[0].entering.shape)
        layer = self._calls[0].name
        return Head(self._model, self._loss, self._batch, layer, value, self._before)

    def _mixing(self, point: Vector) -> Tensor:
        return torch.from_numpy(point.copy()).reshape(self._samples, -1)

    def _passed(self, mixing: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the layer's output, and the next known input, a row for each sample."""
        head = self._head(mixing)
        noise, _ = restore_noise(head, self._calls, self._later)
        leaving = head.leaving_gradient(noise).reshape(self._samples, -1)
        if self._next is None:
            return leaving, leaving[:, :0]
        wanted = self._later[self._next].value
        given = head.input_of(self._next, noise).reshape(wanted.shape)
        return leaving, (given - wanted) / wanted.norm()

    def _unexplained(self, mixing: Tensor) -> Tensor:
        return self._of_gradient(mixing, self._passed(mixing)[0])

    def _of_gradient(self, mixing: Tensor, leaving: Tensor) -> Tensor:
        missed: Tensor = (leaving.mT @ mixing - self._rows.products) / self._size
        return missed

    def _missed(self, point: Vector) -> Vector:
        """What is missed of the gradient, of the ones, and of the next known input."""
        mixing = self._mixing(point)
        leaving, given = self._passed(mixing)
        ones = mixing @ self._rows.basis[:, -1] - 1
        parts = (self._of_gradient(mixing, leaving).flatten(), ones, given.flatten())
        values: Vector = torch.cat(parts).numpy()
        return values

    def _slopes(self, point: Vector) -> Vector:
        """How that changes with each entry of the mixing matrix, ``(equations, entries)``.

        A row of the matrix is the mixing of one sample, and what leaves the layer of that sample
        depends on it alone: so an entry of every row is moved in one pass.
        """
        mixing, samples = self._mixing(point), self._samples
        leaving, given = self._passed(mixing)
        step = STEP * float(mixing.abs().max())
        own = torch.eye(samples, dtype=mixing.dtype)
        columns = []
        for column in own:
            moved, next_ = self._passed(mixing + step * column)
            left, there = (moved - leaving) / step, (next_ - given) / step
            of_gradient = torch.einsum("io,ik->oki", left, mixing)
            of_gradient += torch.einsum("io,k->oki", leaving, column)
            of_given = torch.einsum("in,il->inl", there, own)
            of_ones = own * (self._rows.basis[:, -1] @ column)
            columns.append(
                torch.cat([
                    of_gradient.flatten(0, 1) / self._size, of_ones, of_given.flatten(0, 1)
                ])
            )  # fmt: skip
        values: Vector = torch.stack(columns, dim=2).flatten(1).numpy()
        return values

    def _even(self) -> Tensor:
        """The least mixing that gives the ones: all samples alike."""
        last = self._rows.basis[:, -1]
        return (last / last.square().sum()).expand(self._samples, -1)

    def _starts(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Mixings by the gradient that even inputs would have, disturbed to tell samples apart."""
        head = self._head(self._even())
        noise, _ = restore_noise(head, self._calls, self._later)
        leaving = head.leaving_gradient(noise).reshape(self._samples, -1)
        for number in range(STARTS):
            spread = SPREADS[number >= CAUTIOUS]
            factors = 1 + spread * torch.randn(
                leaving.shape, generator=generator, dtype=leaving.dtype
            )
            yield torch.linalg.pinv((leaving * factors).mT, rtol=SINGULAR) @ self._rows.products
