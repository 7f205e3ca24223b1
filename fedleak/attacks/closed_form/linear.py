"""What stands in a gradient in closed form: of one sample, inputs of linear layers, and noise.

Of one sample, the gradient of a layer ``W h + b`` is ``d h^T`` in W and ``d`` in b, d being that of
its output. So its input h follows from the two without any search, whatever comes before or after
it (Phong et al., TIFS 2018, https://eprint.iacr.org/2017/715, section III), and with the inputs of
the layers around it the noise of a bottleneck is known as well.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedleak.attacks.module_calls import Call
from fedleak.attacks.module_facts import sharing_layers
from fedleak.updates.files import Tensors

# An input known worse than this, relative to its own size, is not built upon.
TRUSTED = 1e-2
# Entries of a gradient whose magnitudes are so much alike are signs: the square of their mean over
# the mean of their squares.
SIGNS = 0.9995
# Times that the rows are weighted anew, where more than rounding is unexplained.
REWEIGHTED = 4
ROUNDING = 1e-6


class KnownInput(NamedTuple):
    """A layer's input, read from a gradient.

    Args:
        value: the input, float64.
        error: the estimated standard error of an entry over the root mean square of all; infinite
            if nothing is known.
    """

    value: Tensor
    error: float

    @property
    def trusted(self) -> bool:
        """Whether it is known well enough to build on."""
        return self.error <= TRUSTED


def linear_input(weight: Tensor, leaving: Tensor) -> KnownInput:
    """The input of a linear layer, from the gradient of its weight and that of its output.

    The least squares solution of ``weight = leaving input^T`` over all rows. Rows are weighted by
    the inverse variance of what the others leave unexplained in them, as noise need not be alike in
    all, and entries of 0 count as cut off, unless their whole column is 0.

    Args:
        weight: gradient of the weight, ``(out, in)``.
        leaving: gradient of the output, which is that of the bias, ``(out,)``.

    Returns:
        The input ``(in,)``; with an infinite error where nothing tells of it: of a gradient with
        less than two rows, and of signs, as a client's Adam leaves them after one step, which are a
        product as well, but with the input's signs.
    """
    weight, leaving = weight.double(), leaving.double()
    size = weight.shape[1]
    if not bool(leaving.any()) or not bool(weight.any()):
        return KnownInput(torch.zeros(size, dtype=weight.dtype, device=weight.device), float("inf"))
    limits = torch.finfo(weight.dtype)
    counted = leaving != 0
    if int(counted.sum()) < 2:  # a single row always fits
        return KnownInput(weight[counted].sum(0) / leaving.sum(), float("inf"))
    weight, leaving = weight[counted], leaving[counted]
    # Two classes always have gradients of one magnitude.
    if (len(leaving) == 2 or _are_signs(leaving)) and _are_signs(weight[weight != 0]):
        return KnownInput(weight.sign().T @ leaving.sign() / len(leaving), float("inf"))
    # An entry of 0 between others of its column was cut off by somebody.
    there = (weight != 0).to(weight)
    rows = weight.square().mean(dim=1)
    # Rounding is the least that is unexplained; a row that happens to fit must not decide alone.
    floor = (limits.eps * rows.mean()).clamp_min(limits.tiny)
    variance = torch.ones_like(leaving)
    for weighting in range(1 + REWEIGHTED):
        shares = leaving.square() / variance
        found = (weight.T @ (leaving / variance)) / (there.T @ shares).clamp_min(limits.tiny)
        # A row is judged by what the others say of it: its own share fits itself.
        others = (1 - shares / shares.sum()).clamp_min(limits.eps**0.5)
        missed = (there * (weight - torch.outer(leaving, found))).square().mean(dim=1)
        variance = missed / others.square() + floor
        if not weighting and float(missed.sum()) <= ROUNDING**2 * float(rows.sum()):
            break
    unexplained = float((missed.sum() / rows.sum()).sqrt())
    precision = (leaving.square() / variance).sum()
    scale = found.square().mean().sqrt().clamp_min(limits.tiny)
    error = float(precision.rsqrt() / scale)
    return KnownInput(found, error if unexplained < 1 else float("inf"))


def _are_signs(entries: Tensor) -> bool:
    sizes = entries.abs()
    return float(sizes.mean().square() / sizes.square().mean()) > SIGNS


def readable(gradient: Tensors, layers: Sequence[Call], samples: int) -> list[Call]:
    """The linear layers with bias whose gradient tells of their input, in the order of the calls.

    Layers that are called more than once, share their weight or take several vectors of a sample
    are left out.

    Args:
        gradient: gradient by parameter name.
        layers: the model's calls.
        samples: number of samples.
    """
    calls = Counter(call.name for call in layers)
    linear = [(call, call.module) for call in layers if type(call.module) is nn.Linear]
    sharing = sharing_layers({call.name: call.module for call in layers}.items())
    return [
        call
        for call, module in linear
        if calls[call.name] == 1
        and call.name not in sharing
        and {f"{call.name}.weight", f"{call.name}.bias"} <= set(gradient)
        and call.entering.numel() == samples * module.in_features
    ]


def known_inputs(gradient: Tensors, layers: Sequence[Call]) -> dict[str, KnownInput]:
    """The inputs ``(1, in)`` of all linear layers with bias, by name in the order of the calls.

    Args:
        gradient: of one sample, by parameter name.
        layers: the model's calls.
    """
    found: dict[str, KnownInput] = {}
    for call in readable(gradient, layers, 1):
        weight, bias = (gradient[f"{call.name}.{name}"] for name in ("weight", "bias"))
        known = linear_input(weight, bias)
        found[call.name] = known._replace(value=known.value[None])
    return found
