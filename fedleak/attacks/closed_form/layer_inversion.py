"""Layer-wise (recursive) inversion: the input of each layer from its output, last to first.

If the output of a layer and the gradient with respect to that output are known, its input follows
from equations that are linear in it: those of the forward pass and those of the weight's gradient.
The known input gives the gradient with respect to it, and the layer before can be inverted (R-GAP,
Zhu and Blaschko, ICLR 2021, https://arxiv.org/abs/2010.07733, section 3, which starts at the
classifier of a model without noise).

A ReLU's output close to 0 may belong to an inactive unit, whose input may be any number up to 0. A
wrong activation pattern makes the equations of the layer before wrong, so that undetermined units
are resolved from the gradient of a bias (:mod:`fedleak.attacks.closed_form.relu_masks`).

The rule of each layer type is in :mod:`fedleak.attacks.closed_form.layer_rules`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedleak.attacks.closed_form.estimates import Estimate
from fedleak.attacks.closed_form.layer_rules import LAYER_RULES, Layer, Step, direct_step
from fedleak.attacks.closed_form.relu_masks import resolve_masks
from fedleak.attacks.module_calls import Call
from fedleak.updates.files import Tensors
from fedleak.updates.naming import joined

# A layer is inverted if at least this share of its output is known or has an upper bound, and the
# inversion goes on if the same holds for its input.
MIN_CONSTRAINED = 0.98


def invert_layers(
    chain: list[Call],
    last: Estimate,
    gradient: Tensors,
    *,
    iterations: int,
    seed: int,
    known: Mapping[str, Tensor] | None = None,
) -> tuple[list[tuple[Call, Estimate]], list[Step], str | None]:
    """Invert layers from the last to the first, as long as their inputs are determined.

    Args:
        chain: the calls in forward order, modules in float64.
        last: estimate of the last one's output.
        gradient: gradient by parameter name.
        iterations: maximum number of iterations of the solver of a layer.
        seed: seed for what a solver draws.
        known: True where a parameter's gradient is exact, by name; parameters that are missing are
            exact everywhere. The equations of other entries are left out.

    Returns:
        The inverted layers, from last to first, with the estimates of their inputs; the steps,
        including that of a layer whose input was not determined well enough; and why the inversion
        ended before the first layer, None if it did not.
    """
    known = known or {}
    estimate, inverted, steps = last, list[tuple[Call, Estimate]](), list[Step]()
    for at, call in reversed(list(enumerate(chain))):
        rule = LAYER_RULES.get(type(call.module))
        kind = type(call.module).__name__
        if rule is None:
            return inverted, steps, f"{call.name} is a {kind}, which has no layer rule"
        share = float(estimate.constrained.double().mean())
        if share < MIN_CONSTRAINED:
            reason = f"only {share:.1%} of the output of {call.name} ({kind}) is known"
            return inverted, steps, reason
        weight = gradient.get(joined(call.name, "weight"))
        # A client sends zeros for a weight that it does not train.
        trained = weight is not None and bool(weight.any())
        exact = known.get(joined(call.name, "weight"))
        layer = Layer(call, weight if trained else None, iterations, seed, exact)
        try:
            found, step = rule(call.module, layer, estimate.reshape(call.output.shape))
        except ValueError as error:
            return inverted, steps, f"{call.name} ({kind}): {error}"
        if isinstance(call.module, nn.ReLU) and at:
            outputs = estimate.reshape(found.value.shape)
            if joined(chain[at - 1].name, "bias") not in known:
                found = _resolve_masks(found, outputs, chain[at - 1], gradient)
            step = direct_step(layer, found)
        steps.append(step)
        share = float(found.constrained.double().mean())
        if share < MIN_CONSTRAINED:
            # The estimate of its output says more than this one: the layer does not count as
            # inverted.
            reason = f"only {share:.1%} of the input of {call.name} ({kind}) is determined"
            return inverted, steps, reason
        estimate = found
        inverted.append((call, estimate))
    return inverted, steps, None


def _resolve_masks(
    inputs: Estimate, outputs: Estimate, before: Call, gradient: Tensors
) -> Estimate:
    """The input of a ReLU, its mask resolved by the gradient of the preceding layer's bias."""
    bias, shape = gradient.get(joined(before.name, "bias")), inputs.value.shape
    if isinstance(before.module, nn.Linear) and len(shape) == 2:
        planes = torch.Size([*shape, 1, 1])
    elif isinstance(before.module, nn.Conv2d) and len(shape) == 4:
        planes = shape
    else:
        return inputs
    if bias is None or not bool(bias.any()):
        return inputs
    return resolve_masks(inputs.reshape(planes), outputs.reshape(planes), bias).reshape(shape)
