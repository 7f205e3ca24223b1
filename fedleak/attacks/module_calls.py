"""The calls of a model's leaf modules in a forward pass: recorded, replaced or skipped."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedleak.models.module_inputs import module_input
from fedleak.updates.module_state import state_kept


class Call(NamedTuple):
    """One call of a module without submodules.

    Args:
        name: the module's path in the model.
        module: the module.
        input: its first argument.
        output: what it returned.
        input_version: number of in-place changes of the input's storage before the call.
        output_version: the same for the output, right after the call.
    """

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor
    input_version: int = 0
    output_version: int = 0


def calls_of(
    model: nn.Module,
    loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor],
    batch: tuple[Tensor, Tensor],
) -> list[Call]:
    """Record the calls of a forward pass, in order.

    Calls whose input or output is not a tensor are left out.

    Args:
        model: the model; its state is as it was before.
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
        def record(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            first, version = module_input(args, kwargs), versions.pop()
            if isinstance(first, Tensor) and isinstance(output, Tensor):
                found.append(Call(name, module, first, output, version, output._version))

        return record

    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(watch(name), with_kwargs=True))
    try:
        with torch.no_grad(), state_kept(model):
            loss(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def chain_to(calls: list[Call], layer: str, inputs: Tensor) -> list[Call] | None:
    """The calls before a layer that form a chain: each takes the output of the one before.

    A change of shape in between, as by ``flatten``, does not break the chain; any other function
    and any in-place change does.

    Args:
        calls: the calls of a forward pass, from :func:`calls_of`.
        layer: name of the layer.
        inputs: the inputs of that pass.

    Returns:
        The calls of the chain that ends at the layer, in order. If the chain is broken, only the
        calls after the last break. None if the layer was not called.
    """
    chain: list[Call] = []
    before, version = inputs, inputs._version
    for call in calls:
        # A function in between returns another tensor, or changes this one in place.
        if not same_entries(call.input, before) or call.input_version != version:
            chain = []
        if call.name == layer:
            return chain
        chain.append(call)
        before, version = call.output, call.output_version
    return None


def same_entries(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors share memory and hold the same entries in the same order.

    Their shapes may differ.

    Args:
        one: a tensor.
        other: another tensor, possibly a view of the first.
    """
    if one is other:
        return True
    alike = one.dtype == other.dtype and one.is_contiguous() and other.is_contiguous()
    return alike and (one.data_ptr(), one.numel()) == (other.data_ptr(), other.numel())


@contextmanager
def replace_inputs(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace the first argument of modules within the block.

    Args:
        model: the model.
        values: module's path -> the argument it receives instead of its own.
    """

    def replacement(value: Tensor) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        def replace(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (value, *args[1:]), kwargs
            return args, kwargs | {next(iter(kwargs)): value}

        return replace

    handles = [
        model.get_submodule(name).register_forward_pre_hook(replacement(value), with_kwargs=True)
        for name, value in values.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def skip_calls(calls: Sequence[Call]) -> Iterator[None]:
    """Within the block, modules return their recorded outputs without computing.

    Args:
        calls: calls whose output is not used; of a module that is called more than once, all.
    """
    given: dict[nn.Module, list[Tensor]] = {}
    for call in calls:
        given.setdefault(call.module, []).append(call.output)
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
