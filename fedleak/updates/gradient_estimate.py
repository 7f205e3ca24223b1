"""A client's gradient from the change of its weights, and how exactly it follows from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedleak.updates.files import Tensors
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.optimizer_steps import State, optimizer_step

# The optimiser's own arithmetic, in units of the type's rounding.
ARITHMETIC = 4.0


@dataclass(frozen=True)
class GradientEstimate:
    """A gradient that explains a change of weights.

    Args:
        gradient: by parameter name; of several steps, the mean of their gradients.
        deviation: bound on the error of each entry, by parameter name. Infinite: the gradient's
            sign is known and its size is at least half of that in ``gradient``. Empty where the
            gradient is exact up to rounding, and where nothing is known of its error.
        exact: whether the change determines the gradient up to rounding or to ``deviation``; if
            not, it is that of steps that are presumed to be alike.
    """

    gradient: Tensors
    deviation: Tensors = field(default_factory=dict)
    exact: bool = True


def estimate_gradient(
    sent: Mapping[str, Tensor],
    change: Mapping[str, Tensor],
    facts: LocalTraining,
    steps: int | Sequence[tuple[float, int]] = 1,
) -> GradientEstimate:
    """The client's gradient from the change of its weights, by the inverse of its optimiser's step.

    SGD is linear: its change over the steps is divided by that for a constant gradient of 1, and
    the weight decay (at the sent weights, of several steps at the mean of sent and returned ones)
    is subtracted. It is exact for one step, with momentum and weight decay too. The first step of
    Adam, RMSprop and Adagrad is a function of each entry that is inverted; it is nearly the sign
    for entries much larger than eps, whose size is lost in rounding. Several of their steps have no
    inverse, nor has the mean of several clients' steps: the change is only scaled to the size of
    one step's.

    Args:
        sent: the weights that the server sent, by name.
        change: the change of each parameter, new minus old.
        facts: the client's local training.
        steps: number of its optimiser steps; of a mean of several clients' changes, the weight and
            the number of steps of each.

    Raises:
        BadInput: if the learning rate is not known.
    """
    gradient: Tensors = {}
    deviation: Tensors = {}
    clients = [(1.0, steps)] if isinstance(steps, int) else steps
    mean_steps = sum(weight * number for weight, number in clients)
    one_step = all(number == 1 for _, number in clients)
    alone = one_step and len(clients) == 1
    for name, own in facts.groups(change).items():
        old, moved = sent[name].double(), change[name].double()
        if own.optimizer == "sgd":
            found = moved / sum(weight * response(own, number) for weight, number in clients)
            if own.weight_decay:
                found = found - own.weight_decay * (old if one_step else old + moved / 2)
            found = -found if own.maximize else found
        elif own.optimizer == "unknown" or not alone:
            found = -moved / (own.rate * mean_steps)
        else:
            found, deviation[name] = _invert_first_step(own, old, moved, sent[name].dtype)
        gradient[name] = found.to(sent[name].dtype)
    exact = one_step and (facts.is_linear or (alone and facts.optimizer != "unknown"))
    return GradientEstimate(gradient, deviation, exact)


def response(facts: LocalTraining, steps: int) -> float:
    """The change by SGD without weight decay for a gradient of 1 in every step.

    Args:
        facts: the client's local training, of one parameter.
        steps: number of its steps.
    """
    if not facts.momentum and facts.schedule is None:
        return -(facts.rate * steps)
    one, state, total = torch.ones((), dtype=torch.float64), State(), 0.0
    unit = LocalTraining(
        learning_rate=facts.learning_rate, momentum=facts.momentum, dampening=facts.dampening,
        nesterov=facts.nesterov, schedule=facts.schedule,
    )  # fmt: skip
    for step in range(steps):
        change, state = optimizer_step(unit, {"": one}, {"": one}, state, step)
        total += float(change[""])
    return total


def _invert_first_step(
    facts: LocalTraining, old: Tensor, moved: Tensor, kind: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Gradient and its possible error, from the first step of Adam, RMSprop or Adagrad."""
    rate, eps = facts.rate_at(0), facts.epsilon
    if facts.optimizer == "adamw":
        moved = moved + rate * facts.weight_decay * old
    # The change over the learning rate, g / (k |g| + eps); with an accumulator a, that is
    # g / (sqrt(a + g^2) + eps).
    ratio = moved.abs() / rate
    rounding = torch.finfo(kind).eps
    # Old and new weights are rounded, to half a unit in the last place each, and decayed ones too.
    weights = torch.maximum(old.abs(), (old + moved).abs())
    weights = 2 * weights if facts.optimizer == "adamw" else weights
    error = rounding * (weights / rate + ARITHMETIC * ratio)
    if facts.optimizer == "adagrad" and facts.initial_accumulator:
        size, slope = _adagrad_inverse(ratio, eps, facts.initial_accumulator)
        deviation = 2 * slope * error
    else:
        scale = 1.0
        if facts.optimizer == "rmsprop":
            scale = math.sqrt((1 - facts.alpha) * (facts.alpha if facts.centered else 1))
        left = (1 - scale * ratio).clamp_min(0)
        floor = torch.maximum(scale * error, torch.full_like(error, 1e-300))
        size = eps * ratio / torch.maximum(left, floor)
        most = eps * (ratio + error) / torch.maximum(left - scale * error, floor)
        deviation = torch.where(left > 2 * floor, most - size, math.inf)
    found = -moved.sign() * size
    if facts.optimizer != "adamw" and facts.weight_decay:
        found = found - facts.weight_decay * old
        # What is known of the sum's sign says little of the gradient's where the decay is large.
        lost = deviation.isinf() & (facts.weight_decay * old.abs() > size / 2)
        found = torch.where(lost, 0.0, found)
        deviation = torch.where(lost, facts.weight_decay * old.abs() + size, deviation)
    return (-found if facts.maximize else found), deviation


def _adagrad_inverse(ratio: Tensor, eps: float, start: float) -> tuple[Tensor, Tensor]:
    """``g`` of ``ratio = g / (sqrt(start + g^2) + eps)``, and its derivative in the ratio."""
    # (g / r - eps)^2 = start + g^2, a quadratic equation in g.
    a = (1 - ratio.square()).clamp_min(1e-300)
    root = (eps**2 * ratio.square() + a * start).sqrt()
    size = ratio * (eps + root) / a
    norm = (start + size.square()).sqrt()
    slope = (norm + eps).square() / (norm + eps - size.square() / norm).clamp_min(1e-300)
    return size, slope


def change_of(sent: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> Tensors:
    """Returned weights minus those that were sent, in float64."""
    return {
        name: value.to(torch.float64, copy=True).sub_(sent[name])
        for name, value in received.items()
    }
