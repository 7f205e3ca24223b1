"""Layers taken off one by one, from the last to the first: what entered each, from what left it.

A layer whose output and whose output's gradient are known gives its input by equations that are
linear in it: those of its forward pass, and those of its weight's gradient. With the input known,
so is the input's gradient, and the layer before can be taken off (R-GAP, Zhu and Blaschko, ICLR
2021, https://arxiv.org/abs/2010.07733, section 3, which begins at the classifier of a model that
draws no noise). Behind a ReLU a value that is nearly 0 may be that of a unit that was off, whose
input may be anything below 0: a wrong guess spoils the equations of the layer before, so that few
are settled with care (:mod:`fedleak.attacks.closed_form.relu_masks`).

A layer type is one function, registered by :func:`peels`.
"""

import torch
from torch import nn

from fedleak.attacks.closed_form.estimates import Signal
from fedleak.attacks.closed_form.layer_rules import PEELS, Layer, Step, unsolved_step
from fedleak.attacks.closed_form.relu_masks import settled
from fedleak.attacks.module_calls import Call
from fedleak.updates.files import Tensors

# The share of an output's entries that has to be known for the layer to come off.
ENOUGH = 0.98


def peel(
    chain: list[Call], last: Signal, gradient: Tensors, *, iterations: int, seed: int
) -> tuple[list[tuple[Call, Signal]], list[Step], str | None]:
    """Take layers off, as long as nearly all of their outputs and inputs are known.

    Args:
        chain: the calls in their order, modules in float64.
        last: what is known of the last one's output.
        gradient: gradient by parameter name.
        iterations: the most that a solver may take for a layer.
        seed: of what a solver draws.

    Returns:
        Of every layer that came off, from last to first, its call and its input; the steps, of one
        that was solved for too little as well; and why it ended before the first layer, or none.
    """
    signal, off, steps = last, list[tuple[Call, Signal]](), list[Step]()
    for at, call in reversed(list(enumerate(chain))):
        function = PEELS.get(type(call.module))
        kind = type(call.module).__name__
        if function is None:
            return off, steps, f"{call.name} is a {kind}, which cannot be taken off"
        share = float((signal.at_most | signal.known).double().mean())
        if share < ENOUGH:
            return off, steps, f"only {share:.1%} of what leaves {call.name} ({kind}) is known"
        weight = gradient.get(f"{call.name}.weight")
        # The client sends zeros for what it does not train.
        told = weight is not None and bool(weight.any())
        layer = Layer(call, weight if told else None, iterations, seed)
        try:
            found, step = function(call.module, layer, signal.shaped(call.leaving.shape))
        except ValueError as error:
            return off, steps, f"{call.name} ({kind}): {error}"
        if isinstance(call.module, nn.ReLU) and at:
            found = _settled(found, signal.shaped(found.value.shape), chain[at - 1], gradient)
            step = unsolved_step(layer, found)
        steps.append(step)
        share = float((found.at_most | found.known).double().mean())
        if share < ENOUGH:
            # What is known of its output says more than that.
            return off, steps, f"{call.name} ({kind}) leaves {share:.1%} of its input known"
        signal = found
        off.append((call, signal))
    return off, steps, None


def _settled(entering: Signal, leaving: Signal, before: Call, gradient: Tensors) -> Signal:
    """What entered a ReLU, gates in doubt settled by the bias of the layer before it."""
    bias, shape = gradient.get(f"{before.name}.bias"), entering.value.shape
    if isinstance(before.module, nn.Linear) and len(shape) == 2:
        places = torch.Size([*shape, 1, 1])
    elif isinstance(before.module, nn.Conv2d) and len(shape) == 4:
        places = shape
    else:
        return entering
    if bias is None or not bool(bias.any()):
        return entering
    return settled(entering.shaped(places), leaving.shaped(places), bias).shaped(shape)
