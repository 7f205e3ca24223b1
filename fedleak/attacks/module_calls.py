"""A model as the sequence of its innermost modules' calls."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedleak.models.module_inputs import module_input


class Call(NamedTuple):
    """One call of a module that holds no others.

    Args:
        name: the module's path in the model.
        module: the module.
        entering: its (first) argument.
        leaving: what it gave.
        entered: how often the argument had been changed in place when it came.
        left: how often what it gave had been, when it left.
    """

    name: str
    module: nn.Module
    entering: Tensor
    leaving: Tensor
    entered: int = 0
    left: int = 0


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
    versions: list[int] = []

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = module_input(args, kwargs)
        versions.append(first._version if isinstance(first, Tensor) else 0)

    def watch(name: str) -> Callable[..., None]:
        def note(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], leaving: Any
        ) -> None:
            first, entered = module_input(args, kwargs), versions.pop()
            if isinstance(first, Tensor) and isinstance(leaving, Tensor):
                found.append(Call(name, module, first, leaving, entered, leaving._version))

        return note

    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
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

    What came in between may have been given another shape, as by ``flatten``.

    Args:
        calls: see :func:`calls_of`.
        layer: name of the layer.
        inputs: the inputs of that pass.

    Returns:
        The calls, from first to last; those up to the first gap are left out, so that a chain that
        does not begin with the inputs begins behind a gap. None if there is no such layer.
    """
    chain: list[Call] = []
    before, version = inputs, inputs._version
    for call in calls:
        # A function in between gives another tensor, or changes this one in place.
        if not same_entries(call.entering, before) or call.entered != version:
            chain = []
        if call.name == layer:
            return chain
        chain.append(call)
        before, version = call.leaving, call.left
    return None


def same_entries(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same order, in shapes of their own.

    Args:
        one: a tensor.
        other: another one, which may be a view of it.
    """
    if one is other:
        return True
    alike = one.dtype == other.dtype and one.is_contiguous() and other.is_contiguous()
    return alike and (one.data_ptr(), one.numel()) == (other.data_ptr(), other.numel())


@contextmanager
def entering(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, modules are given these values instead of their own arguments.

    Args:
        model: the model.
        values: module's path -> its argument.
    """

    def give(value: Tensor) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        def replace(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (value, *args[1:]), kwargs
            return args, kwargs | {next(iter(kwargs)): value}

        return replace

    handles = [
        model.get_submodule(name).register_forward_pre_hook(give(value), with_kwargs=True)
        for name, value in values.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def skipping(calls: Sequence[Call]) -> Iterator[None]:
    """Within the block, modules give what they gave in those calls, and compute nothing.

    Args:
        calls: calls whose outcome does not matter; of a module called more than once, all.
    """
    given: dict[nn.Module, list[Tensor]] = {}
    for call in calls:
        given.setdefault(call.module, []).append(call.leaving)
    before = {module: vars(module).get("forward") for module in given}

    def replace(values: Iterator[Tensor]) -> Callable[..., Tensor]:
        return lambda *_args, **_kwargs: next(values)

    try:
        for module, values in given.items():
            module.forward = replace(cycle(values))
        yield
    finally:
        for module, forward in before.items():
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward
