"""Facts about a client's local training that follow from a module's own optimiser."""

from collections.abc import Iterable, Mapping
from glob import escape
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.updates.local_training import PER_PARAMETER, LocalTraining, OptimizerName

# Class -> name, and torch's name of a setting -> that of LocalTraining.
_NAMES: dict[type, OptimizerName] = {
    torch.optim.SGD: "sgd",
    torch.optim.Adam: "adam",
    torch.optim.AdamW: "adamw",
    torch.optim.RMSprop: "rmsprop",
    torch.optim.Adagrad: "adagrad",
}
_SETTINGS = {"lr": "learning_rate", "initial_accumulator_value": "initial_accumulator"}


def optimizer_facts(
    optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, nn.Parameter]]
) -> LocalTraining:
    """The facts of an optimiser that has not made a step yet.

    Args:
        optimizer: the optimiser; of another class than those that ``LocalTraining`` names, a
            subclass included, it is unknown, since it may compute another step.
        parameters: the model's parameters by name.
    """
    names = {id(value): name for name, value in parameters}
    kind = _NAMES.get(type(optimizer), "unknown")
    groups = [
        (
            [names[id(value)] for value in group["params"] if id(value) in names],
            _settings(group),
        )
        for group in optimizer.param_groups
    ]
    first = groups[0][1]
    if kind == "unknown":
        first = {name: value for name, value in first.items() if name == "learning_rate"}
        title = type(optimizer).__name__
        return LocalTraining(optimizer=kind, reason=f"{title} is not simulated", **first)
    own: dict[str, dict[str, Any]] = {}
    for members, settings in groups[1:]:
        differing = {name: value for name, value in settings.items() if value != first[name]}
        own |= {escape(name): differing for name in members if differing}
    return LocalTraining(optimizer=kind, per_parameter=own, **first)


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    found = {_SETTINGS.get(name, name): value for name, value in group.items()}
    if "initial_lr" in group:  # which a schedule has changed already
        found["learning_rate"] = group["initial_lr"]
    settings = {name: value for name, value in found.items() if name in PER_PARAMETER}
    if "betas" in settings:
        settings["betas"] = tuple(map(float, settings["betas"]))
    return {
        name: float(value) if isinstance(value, Tensor) else value
        for name, value in settings.items()
    }
