"""Facts about a client's local training that follow from a module's own optimiser."""

from typing import Any

import torch
from torch import nn

from fedleak.errors import BadInput


def local_learning_rate(model: nn.Module) -> float:
    """The learning rate of a module's own optimiser (the first one, if it has several).

    Raises:
        BadInput: if ``configure_optimizers`` returns no optimiser.
    """
    configure: Any = model.configure_optimizers
    found: Any = configure()
    while isinstance(found, list | tuple | dict):
        found = found["optimizer"] if isinstance(found, dict) else found[0]
    if not isinstance(found, torch.optim.Optimizer):
        raise BadInput(
            f"Expected `configure_optimizers` of {type(model).__name__} to return an optimiser, "
            f"got {found!r}."
        )
    return float(found.param_groups[0]["lr"])


def plain_sgd(model: nn.Module) -> bool:
    """Whether a module trains with a single SGD without momentum, weight decay or schedule."""
    configure: Any = model.configure_optimizers
    found: Any = configure()
    if isinstance(found, tuple) and len(found) == 2 and not found[1]:
        found = found[0]  # no schedules
    if isinstance(found, list | tuple) and len(found) == 1:
        found = found[0]
    if isinstance(found, dict) and found.get("lr_scheduler") is None:
        found = found["optimizer"]
    # A subclass of SGD may compute another step.
    if type(found) is not torch.optim.SGD or len(found.param_groups) > 1:
        return False
    (settings,) = found.param_groups
    moved = {id(value) for value in settings["params"]}
    trained = {id(value) for value in model.parameters() if value.requires_grad}
    others = any(settings[name] for name in ("momentum", "weight_decay", "maximize"))
    return moved == trained and not others
