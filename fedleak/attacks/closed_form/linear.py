"""Inputs of linear layers, from the gradients of their weights and biases.

For one sample, a layer ``y = W h + b`` has the gradients ``G_W = d h^T`` and ``G_b = d``, where d
is the gradient of the loss with respect to y. The input h follows from G_W and G_b in closed form,
whatever precedes or follows the layer (Phong et al., TIFS 2018, https://eprint.iacr.org/2017/715,
section III).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedleak.attacks.gradient_origin import TYPICAL
from fedleak.attacks.module_calls import Call
from fedleak.attacks.module_facts import sharing_layers
from fedleak.updates.files import Tensors
from fedleak.updates.naming import joined

# An input is used in later steps if its relative standard error is at most this.
MAX_ERROR = 1e-2
# A gradient counts as signs (all magnitudes alike) if the squared mean of its magnitudes is above
# this share of their mean square.
SIGN_UNIFORMITY = 0.9995
# Iterations of reweighting the rows, where the first fit leaves more than rounding unexplained.
REWEIGHTING_STEPS = 4
ROUNDING = 1e-6


class KnownInput(NamedTuple):
    """Estimate of a layer's input, computed from a gradient.

    Args:
        value: the input, float64.
        error: estimated standard error of a known entry, relative to the root mean square of all
            entries; infinite if the gradient does not determine the input.
        known: True where an entry is known, False where it is no more than bounded. If None, all
            are known.
    """

    value: Tensor
    error: float
    known: Tensor | None = None

    @property
    def trusted(self) -> bool:
        """Whether the estimate is accurate enough for later steps to use it."""
        return self.error <= MAX_ERROR

    @property
    def complete(self) -> bool:
        """Whether all entries are known."""
        return self.known is None or bool(self.known.all())


def linear_input(weight_gradient: Tensor, output_gradient: Tensor) -> KnownInput:
    """Input of a linear layer, from the gradients of its weight and of its output.

    The weighted least squares solution of ``weight_gradient = output_gradient input^T`` over all
    rows. A row's weight is the inverse of its residual variance, which is estimated from the other
    rows and iterated, since noise may differ from row to row. Entries that are 0 in a column with
    other entries are taken for pruned and left out.

    Args:
        weight_gradient: gradient of the weight, ``(out, in)``.
        output_gradient: gradient of the output, which equals that of the bias, ``(out,)``.

    Returns:
        The input, ``(in,)``. Its error is infinite if the gradient does not determine it: if fewer
        than two rows are nonzero, or if the gradient consists of signs, as a client's Adam sends
        after one step. Signs form a product as well, but only with the signs of the input.
    """
    weight, output = weight_gradient.double(), output_gradient.double()
    size = weight.shape[1]
    if not bool(output.any()) or not bool(weight.any()):
        return KnownInput(torch.zeros(size, dtype=weight.dtype, device=weight.device), float("inf"))
    limits = torch.finfo(weight.dtype)
    nonzero = output != 0
    if int(nonzero.sum()) < 2:  # one row fits exactly, so that its error cannot be estimated
        return KnownInput(weight[nonzero].sum(0) / output.sum(), float("inf"))
    weight, output = weight[nonzero], output[nonzero]
    # With two classes, both entries of the gradient always have the same magnitude.
    if (len(output) == 2 or _are_signs(output)) and _are_signs(weight[weight != 0]):
        return KnownInput(weight.sign().T @ output.sign() / len(output), float("inf"))
    # An entry of 0 between nonzero entries of its column was pruned.
    kept = (weight != 0).to(weight)
    rows = weight.square().mean(dim=1)
    # Rounding bounds the variance from below: a row that fits by chance must not decide alone.
    floor = (limits.eps * rows.mean()).clamp_min(limits.tiny)
    variance = torch.ones_like(output)
    for iteration in range(1 + REWEIGHTING_STEPS):
        shares = output.square() / variance
        found = (weight.T @ (output / variance)) / (kept.T @ shares).clamp_min(limits.tiny)
        # Dividing by one minus its leverage removes the influence of a row on its own residual.
        others = (1 - shares / shares.sum()).clamp_min(limits.eps**0.5)
        residual = (kept * (weight - torch.outer(output, found))).square().mean(dim=1)
        variance = residual / others.square() + floor
        if not iteration and float(residual.sum()) <= ROUNDING**2 * float(rows.sum()):
            break
    unexplained = float((residual.sum() / rows.sum()).sqrt())
    precision = (output.square() / variance).sum()
    rms = found.square().mean().sqrt().clamp_min(limits.tiny)
    error = float(precision.rsqrt() / rms)
    return KnownInput(found, error if unexplained < 1 else float("inf"))


def bounded_linear_input(
    weight_gradient: Tensor,
    output_gradient: Tensor,
    weight_deviation: Tensor,
    output_deviation: Tensor,
) -> KnownInput:
    """The same where each entry of the gradients is known up to a bound, as of a step of Adam.

    Every row gives an estimate ``G_ij / d_i`` of an entry j of the input; they are averaged with
    weights that are inverse to the squares of their errors, entry by entry.

    Args:
        weight_gradient: see :func:`linear_input`.
        output_gradient: see :func:`linear_input`.
        weight_deviation: bound on the error of each entry, infinite where its size is not known.
        output_deviation: the same of the output's gradient.

    Returns:
        The input, ``(in,)``; an entry of which nothing is known is 0. The error is infinite if
        there is such an entry, or if all are 0.
    """
    weight, output = weight_gradient.double(), output_gradient.double()
    spread, own = weight_deviation.double(), output_deviation.double()
    # A row whose output's gradient may be 0 gives no ratio.
    rows = (own < output.abs()) & output.isfinite()
    size = weight.shape[1]
    if not bool(rows.any()):
        return KnownInput(torch.zeros(size, dtype=weight.dtype, device=weight.device), float("inf"))
    weight, spread = weight[rows], spread[rows]
    output, own = output[rows, None], own[rows, None]
    tiny = torch.finfo(weight.dtype).tiny
    ratio = weight / output
    found = torch.zeros_like(ratio[0])
    precision = found
    for _ in range(1 + REWEIGHTING_STEPS):
        # The first pass takes the error of the weight's gradient alone.
        error = (spread.square() + (found * own).square()).sqrt() / (output.abs() - own)
        share = error.clamp_min(tiny**0.5).square().reciprocal()
        precision = share.sum(dim=0)
        found = torch.where(
            precision > 0, (share * ratio).sum(dim=0) / precision.clamp_min(tiny), 0
        )
    rms = found.square().mean().sqrt()
    if not bool(precision.all()) or not bool(rms > 0):
        return KnownInput(found, float("inf"))
    return KnownInput(found, TYPICAL * float(precision.reciprocal().mean().sqrt() / rms))


def _are_signs(entries: Tensor) -> bool:
    sizes = entries.abs()
    return float(sizes.mean().square() / sizes.square().mean()) > SIGN_UNIFORMITY


def invertible_linear(gradient: Tensors, calls: Sequence[Call], samples: int) -> list[Call]:
    """Calls of the linear layers whose input can be computed from their gradient, in call order.

    These have a weight and a bias with a gradient, are called once, share no parameter with another
    called layer and are given one vector per sample.

    Args:
        gradient: gradient by parameter name.
        calls: the calls of a forward pass.
        samples: number of samples.
    """
    count = Counter(call.name for call in calls)
    linear = [(call, call.module) for call in calls if type(call.module) is nn.Linear]
    sharing = sharing_layers({call.name: call.module for call in calls}.items())
    return [
        call
        for call, module in linear
        if count[call.name] == 1
        and call.name not in sharing
        and {joined(call.name, "weight"), joined(call.name, "bias")} <= set(gradient)
        and call.input.numel() == samples * module.in_features
    ]


def input_of(
    layer: str, gradient: Tensors, deviation: Mapping[str, Tensor] | None = None
) -> KnownInput:
    """Input of a linear layer with bias, for one sample.

    Args:
        layer: the layer's name.
        gradient: gradient by parameter name.
        deviation: see :func:`known_inputs`.
    """
    names = [joined(layer, name) for name in ("weight", "bias")]
    weight, bias = (gradient[name] for name in names)
    if not deviation:
        return linear_input(weight, bias)
    return bounded_linear_input(weight, bias, *(deviation[name] for name in names))


def known_inputs(
    gradient: Tensors, calls: Sequence[Call], deviation: Mapping[str, Tensor] | None = None
) -> dict[str, KnownInput]:
    """Inputs of all linear layers that :func:`invertible_linear` lists, for one sample.

    Args:
        gradient: gradient of one sample, by parameter name.
        calls: the calls of a forward pass.
        deviation: bound on the error of each entry, see :func:`bounded_linear_input`. If None or
            empty, the gradient is exact.

    Returns:
        Layer name -> input ``(1, in)``, in call order.
    """
    found: dict[str, KnownInput] = {}
    for call in invertible_linear(gradient, calls, 1):
        known = input_of(call.name, gradient, deviation)
        found[call.name] = known._replace(value=known.value[None])
    return found
