"""Bins on brightness in a module that the server puts in front of the clients' model."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from fedleak.errors import require
from fedleak.servers.base import Change
from fedleak.servers.first_layer import FirstLayer, dependent_module
from fedleak.servers.imprint import Imprint

NAME = "imprint"
"""Name of the module in the changed model."""


class ImprintBlock(nn.Module):
    """A linear layer with ReLU and a linear way back to the input, to which it is added.

    Args:
        input_shape: shape of one sample.
        units: number of units of the first layer.
    """

    def __init__(self, input_shape: tuple[int, ...], units: int) -> None:
        super().__init__()
        features = math.prod(input_shape)
        self.bins = nn.Linear(features, units)
        self.back = nn.Linear(units, features, bias=False)
        # Clients that are not attacked train the model that they would have had.
        nn.init.zeros_(self.back.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs of the same shape ``(samples, ...)``."""
        flat = inputs.flatten(1)
        changed: Tensor = flat + self.back(self.bins(flat).relu())
        return changed.reshape(inputs.shape)


@dataclass(kw_only=True, eq=False, repr=False)
class ImprintModule(Imprint):
    """Puts a module in front of any model, and reads inputs from the rows of its first layer.

    The module is a linear layer with ReLU and a linear layer back to the size of the input, to
    which its output is added. For the clients that are attacked, all units of its first layer
    measure the mean of a sample's normalised values, and compare it with thresholds at which equal
    shares of the samples are expected; the way back weighs all units alike (Fowl et al. 2022,
    sections 3 and 4). So the gradients of two neighbouring rows differ by the samples between their
    thresholds, whatever model comes after it. The module of all others adds 0.

    In a run all clients are given the changed model. In an app of your own, clients have to train
    what :meth:`changed_model` returns: where the client's code makes the model, no server can
    change it.

    Args:
        units: number of units, and so of bins, of the module.
        deviation: standard deviation of the mean of an input, normalised, for thresholds at
            quantiles of a normal law around 0. If None, the thresholds are quantiles of public
            inputs.
        size: standard deviation of the weights of the way back, above 0: small enough to leave what
            the model sees nearly as it is.

    Raises:
        BadInput: if a value is out of its range.
    """

    name: ClassVar[str] = "imprint_module"
    paper: ClassVar[str] = "Fowl et al., ICLR 2022, arXiv 2110.13057, sections 3 and 4"
    threat_model: ClassVar[str] = "malicious server that changes the model"
    changes: ClassVar[frozenset[Change]] = frozenset({"model", "parameters"})
    needs: ClassVar[str] = (
        "clients that train the model which the server gives them; classes; no batch norm or "
        "dropout; public inputs, or the deviation of the mean"
    )

    units: int = 512
    size: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.units >= 2, f"Expected `units` of {self.name} to be at least 2, got {self.units}."
        )

    def changed_model(self, model: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
        """See :meth:`MaliciousServer.changed_model`: the model itself, with the module in it."""
        require(
            not hasattr(model, NAME),
            f"Expected a model without an attribute `{NAME}`, as {self.name} adds a module of that "
            f"name, got {type(model).__name__}.",
        )
        model.add_module(NAME, ImprintBlock(input_shape, self.units))
        model.register_forward_pre_hook(_through_the_module, with_kwargs=True)
        return model

    def find_layer(self, model: nn.Module, input_shape: tuple[int, ...]) -> FirstLayer:
        """See :meth:`FirstLayerServer.find_layer`."""
        block = getattr(model, NAME)
        return FirstLayer(f"{NAME}.bins", block.bins, f"{NAME}.back")

    def refuses_model(self, model: nn.Module) -> str | None:
        """See :meth:`MaliciousServer.refuses_model`."""
        if not isinstance(getattr(model, NAME, None), ImprintBlock):
            return (
                f"{type(model).__name__} is without the module: the clients have to train what "
                "`changed_model` returns"
            )
        return dependent_module(model)


def _through_the_module(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A hook before the model: its first argument passes through the module."""
    block: Any = getattr(model, NAME)
    if args:
        return (block(args[0]), *args[1:]), kwargs
    name = next(iter(kwargs))
    return args, kwargs | {name: block(kwargs[name])}
