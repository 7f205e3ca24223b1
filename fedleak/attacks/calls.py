"""A model as the sequence of its innermost modules' calls."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Call(NamedTuple):
    """One call of a module that holds no others.

    Args:
        name: the module's path in the model.
        module: the module.
        entering: its (first) argument.
        leaving: what it gave.
    """

    name: str
    module: nn.Module
    entering: Tensor
    leaving: Tensor


def calls_of(
    model: nn.Module,
    loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor],
    batch: tuple[Tensor, Tensor],
) -> list[Call]:
    """The calls of a forward pass, in their order.

    Args:
        model: the model; a forward pass in train mode moves its batch-norm statistics.
        loss: the loss of a batch, given model and batch.
        batch: inputs and labels.
    """
    found: list[Call] = []
    handles = []

    def watch(name: str) -> Callable[..., None]:
        def note(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], leaving: Any
        ) -> None:
            first = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(first, Tensor) and isinstance(leaving, Tensor):
                found.append(Call(name, module, first, leaving))

        return note

    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            handles.append(module.register_forward_hook(watch(name), with_kwargs=True))
    try:
        with torch.no_grad():
            loss(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def chain_to(calls: list[Call], layer: str, inputs: Tensor) -> list[Call] | None:
    """The calls before a layer, if each is given what the one before gave, from the inputs on.

    Args:
        calls: see :func:`calls_of`.
        layer: name of the layer.
        inputs: the inputs of that pass.

    Returns:
        The calls, from first to last; those up to the first gap are left out, so that a chain that
        does not begin with the inputs begins behind a gap. None if there is no such layer.
    """
    chain: list[Call] = []
    before = inputs
    for call in calls:
        if call.entering is not before:
            chain = []
        if call.name == layer:
            return chain
        chain.append(call)
        before = call.leaving
    return None


@contextmanager
def entering(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, modules are given these values instead of their own arguments.

    Args:
        model: the model.
        values: module's path -> its argument.
    """

    def give(value: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        return lambda _module, args: (value, *args[1:])

    handles = [
        model.get_submodule(name).register_forward_pre_hook(give(value))
        for name, value in values.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
