"""Steps of the clients' optimisers as functions of tensors, differentiable in the gradients.

They compute what ``torch.optim`` computes, elementwise and without changing anything in place, so
that they can be used under ``torch.func`` and batched.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedleak.errors import BadInput
from fedleak.updates.files import Tensors
from fedleak.updates.local_training import LocalTraining

State = dict[str, Tensors]
"""Of each parameter, the optimiser's tensors by name; empty before the first step."""


def optimizer_step(
    facts: LocalTraining,
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    state: State,
    step: int,
    smoothing: Mapping[str, Tensor] | None = None,
) -> tuple[Tensors, State]:
    """One step of a client's optimiser.

    Args:
        facts: the optimiser and its settings.
        weights: parameters by name.
        gradients: their gradients.
        state: what the last step returned; empty before the first.
        step: number of the step, from 0.
        smoothing: by parameter, what is added to ``eps``, at least 0: the larger, the less is the
            step of adam and its kin a mere sign of the gradient. If None, nothing.

    Returns:
        The change of each parameter (new minus old), and the state for the next step.

    Raises:
        BadInput: if the optimiser is unknown, or no learning rate is known.
    """
    if facts.optimizer == "unknown":
        raise BadInput("Expected an optimiser that can be simulated, got an unknown one.")
    changes: Tensors = {}
    after: State = {}
    for name, own in facts.groups(list(weights)).items():
        more = 0.0 if smoothing is None else smoothing[name]
        changes[name], after[name] = _STEPS[own.optimizer](
            own, weights[name], gradients[name], state.get(name, {}), step, own.epsilon + more
        )
    return changes, after


def _decayed(facts: LocalTraining, weight: Tensor, gradient: Tensor) -> Tensor:
    gradient = -gradient if facts.maximize else gradient
    return gradient + facts.weight_decay * weight if facts.weight_decay else gradient


def _sgd(
    facts: LocalTraining,
    weight: Tensor,
    gradient: Tensor,
    state: Tensors,
    step: int,
    _eps: float | Tensor,
) -> tuple[Tensor, Tensors]:
    gradient, after = _decayed(facts, weight, gradient), dict[str, Tensor]()
    if facts.momentum:
        # torch takes the first gradient without dampening.
        mean = (
            facts.momentum * state["momentum"] + (1 - facts.dampening) * gradient
            if state
            else gradient
        )
        after = {"momentum": mean}
        gradient = gradient + facts.momentum * mean if facts.nesterov else mean
    return -facts.rate_at(step) * gradient, after


def _adam(
    facts: LocalTraining,
    weight: Tensor,
    gradient: Tensor,
    state: Tensors,
    step: int,
    eps: float | Tensor,
) -> tuple[Tensor, Tensors]:
    rate, decoupled = facts.rate_at(step), facts.optimizer == "adamw"
    if decoupled:
        gradient = -gradient if facts.maximize else gradient
    else:
        gradient = _decayed(facts, weight, gradient)
    first, second = facts.betas
    zero = torch.zeros_like(gradient)
    mean = first * state.get("mean", zero) + (1 - first) * gradient
    square = second * state.get("square", zero) + (1 - second) * gradient.square()
    after = {"mean": mean, "square": square}
    if facts.amsgrad:
        after["highest"] = square = torch.maximum(state.get("highest", zero), square)
    scale = (1 - second ** (step + 1)) ** 0.5
    root = root_of(square) / scale
    change = -rate / (1 - first ** (step + 1)) * mean / (root + eps)
    return change - rate * facts.weight_decay * weight if decoupled else change, after


def _rmsprop(
    facts: LocalTraining,
    weight: Tensor,
    gradient: Tensor,
    state: Tensors,
    step: int,
    eps: float | Tensor,
) -> tuple[Tensor, Tensors]:
    gradient = _decayed(facts, weight, gradient)
    zero = torch.zeros_like(gradient)
    square = facts.alpha * state.get("square", zero) + (1 - facts.alpha) * gradient.square()
    after = {"square": square}
    if facts.centered:
        after["mean"] = facts.alpha * state.get("mean", zero) + (1 - facts.alpha) * gradient
        square = (square - after["mean"].square()).clamp_min(0)
    direction = gradient / (root_of(square) + eps)
    if facts.momentum:
        direction = facts.momentum * state.get("momentum", zero) + direction
        after["momentum"] = direction
    return -facts.rate_at(step) * direction, after


def _adagrad(
    facts: LocalTraining,
    weight: Tensor,
    gradient: Tensor,
    state: Tensors,
    step: int,
    eps: float | Tensor,
) -> tuple[Tensor, Tensors]:
    gradient = _decayed(facts, weight, gradient)
    start = torch.full_like(gradient, facts.initial_accumulator)
    total = state.get("total", start) + gradient.square()
    rate = facts.rate_at(step) / (1 + step * facts.lr_decay)
    return -rate * gradient / (root_of(total) + eps), {"total": total}


def root_of(square: Tensor) -> Tensor:
    """The square root, with derivative 0 instead of infinity where it is 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


_STEPS = {"sgd": _sgd, "adam": _adam, "adamw": _adam, "rmsprop": _rmsprop, "adagrad": _adagrad}
