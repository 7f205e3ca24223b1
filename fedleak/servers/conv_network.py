"""Networks of an encoder, such as convolutions, and three linear layers: their parts and features.

The parts are found by calling the network, so that it does not matter how its module is written.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.errors import BadInput
from fedleak.models.module_inputs import module_input

LINEAR = 3
"""Number of linear layers at the end."""
PROBES = 4
"""Number of samples on which a network is called to find its parts."""
BATCH = 500
"""Number of samples whose features are computed at once."""


@dataclass(frozen=True)
class ConvNetwork:
    """The parts of a network that is an encoder and three linear layers with ReLU between.

    Args:
        encoder: names of the layers with parameters before the linear ones, in the order of their
            calls; none if the first linear layer takes the input itself.
        linear: names of the three linear layers.
        features: number of inputs of the first linear layer.
        units: number of its outputs.
        hidden: number of outputs of the second.
        classes: number of outputs of the third.
    """

    encoder: tuple[str, ...]
    linear: tuple[str, str, str]
    features: int
    units: int
    hidden: int
    classes: int


def find_network(model: nn.Module, input_shape: tuple[int, ...]) -> ConvNetwork:
    """The parts of a network.

    Args:
        model: the model; its state is as it was before.
        input_shape: shape of one sample.

    Raises:
        BadInput: if the network is not an encoder and three linear layers with bias, with ReLU
            between them and nothing after them, or if the features of a sample depend on chance or
            on the other samples of a batch, in train mode.
    """
    if reason := linear_layers_lacking(model):
        raise BadInput(f"Expected an encoder and three linear layers with bias, got {reason}.")
    name = type(model).__name__
    twin = copy.deepcopy(model).train()
    like = next(twin.parameters())
    draw = torch.Generator().manual_seed(0)
    probes = torch.rand(PROBES, *input_shape, generator=draw).to(like)
    with torch.random.fork_rng(), torch.no_grad():
        calls, output = layer_calls(twin, probes)
        again, _ = layer_calls(twin, probes[:2])
    order = [call.name for call in calls]
    tail = calls[-3:]
    fits = (
        len(set(order)) == len(order)
        and set(order) == {name for name, _ in layers_with_parameters(model)}
        and all(type(call.module) is nn.Linear for call in tail)
        and tail[0].input.dim() == 2
        and all(torch.equal(after.input, before.output.relu()) for before, after in pairwise(tail))
        and torch.equal(output, tail[-1].output)
    )
    if not fits:
        raise BadInput(
            f"Expected {name} to call every layer once and to end with three linear layers with "
            f"ReLU between them and nothing after them, got calls of {', '.join(order)[:200]}."
        )
    if not torch.allclose(again[-3].input, tail[0].input[:2], rtol=1e-4, atol=1e-6):
        raise BadInput(
            f"Expected that what enters `{tail[0].name}` of {name} depends on the sample alone, "
            "got a layer before it, such as batch norm or dropout, that depends on other samples "
            "or on chance."
        )
    first, second, third = (call.module for call in tail)
    return ConvNetwork(
        encoder=tuple(order[:-3]),
        linear=(order[-3], order[-2], order[-1]),
        features=first.in_features,
        units=first.out_features,
        hidden=second.out_features,
        classes=third.out_features,
    )


def linear_layers_lacking(model: nn.Module) -> str | None:
    """Why a model, by its layers alone, cannot be such a network. If None, it may be one.

    Args:
        model: the model.
    """
    name = type(model).__name__
    linear = [layer for _, layer in layers_with_parameters(model) if type(layer) is nn.Linear]
    if len(linear) < LINEAR:
        return f"{name} with {len(linear)} linear layers"
    if any(layer.bias is None for layer in linear[-LINEAR:]):
        return f"{name}, of which one of the last three linear layers has no bias"
    parameters = list(model.named_parameters(remove_duplicate=False))
    if len({id(value) for _, value in parameters}) < len(parameters):
        return f"{name}, of which two layers share a parameter"
    kinds = {str(value.dtype) for _, value in parameters}
    if not kinds <= {"torch.float32", "torch.float64"}:
        return f"{name} with parameters of {', '.join(sorted(kinds))}, which round too coarsely"
    return None


def layers_with_parameters(model: nn.Module) -> list[tuple[str, Any]]:
    """The modules that have parameters of their own, by name, in the order of registration."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]


def with_weights(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A copy of a model with other weights, in eval mode, that requires no gradient.

    Args:
        model: the architecture.
        weights: its complete state by name.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    twin.load_state_dict(weights)
    return twin


def encode(model: nn.Module, network: ConvNetwork, inputs: Tensor) -> Tensor:
    """The features of inputs, differentiable in them: what enters the first linear layer.

    Args:
        model: the model.
        network: its parts.
        inputs: ``(samples, ...)``, normalised as the clients'.

    Returns:
        ``(samples, features)``.
    """
    found: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(module_input(args, kwargs))

    layer = model.get_submodule(network.linear[0])
    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        model(inputs.contiguous())
    finally:
        handle.remove()
    return found[0]


def encoder_features(model: nn.Module, network: ConvNetwork, inputs: Tensor) -> Tensor:
    """The features of many inputs, without gradient.

    Args:
        model: the model.
        network: its parts.
        inputs: ``(samples, ...)``, normalised as the clients'.

    Returns:
        ``(samples, features)``, on the CPU.
    """
    like = next(model.parameters())
    with torch.no_grad():
        return torch.cat(
            [encode(model, network, part.to(like)).cpu() for part in inputs.split(BATCH)]
        )


@dataclass(frozen=True)
class LayerCall:
    """The call of a layer with parameters.

    Args:
        name: its name in the model.
        module: the layer.
        input: what entered it.
        output: what came out.
    """

    name: str
    module: Any
    input: Tensor
    output: Tensor


def layer_calls(model: nn.Module, inputs: Tensor) -> tuple[list[LayerCall], Any]:
    """The calls of the layers with parameters, in order, and the model's output.

    Args:
        model: the model.
        inputs: ``(samples, ...)``, normalised as the clients'.
    """
    calls: list[LayerCall] = []

    def watch(name: str) -> Callable[..., None]:
        def record(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> None:
            # Copies, since a ReLU may work in place.
            first = module_input(args, kwargs)
            calls.append(LayerCall(name, module, first.clone(), output.clone()))

        return record

    handles = [
        module.register_forward_hook(watch(name), with_kwargs=True)
        for name, module in layers_with_parameters(model)
    ]
    try:
        return calls, model(inputs)
    finally:
        for handle in handles:
            handle.remove()
