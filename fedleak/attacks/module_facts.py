"""Properties of a model that several attacks depend on."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fedleak.attacks.module_calls import calls_of, chain_to, same_entries
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.naming import joined


def first_linear(knowledge: Knowledge) -> str | None:
    """Name of the first layer with weights, if it is linear with bias and takes a whole sample.

    Args:
        knowledge: gives the model, whose modules are assumed to be registered in order of use.

    Returns:
        The name. None if the first layer is another one.
    """
    size = torch.Size(knowledge.input_shape).numel()
    for name, module in knowledge.model.named_modules():
        own = {part for part, _ in module.named_parameters(recurse=False)}
        if own:
            fits = type(module) is nn.Linear and module.in_features == size
            return name if fits and own == {"weight", "bias"} else None
    return None


# The identity, unless they draw.
DROPOUTS = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip


def draws(module: nn.Module) -> bool:
    """Whether a layer draws random numbers in every forward pass outside the noise slots."""
    if isinstance(module, DROPOUTS):
        return module.training and module.p > 0
    return isinstance(module, nn.RReLU) and module.training


RESHAPING = (nn.Flatten, nn.Unflatten, nn.Identity)


def enters_unchanged(knowledge: Knowledge, layer: str) -> bool:
    """Whether a layer's input is the model's input, up to its shape.

    Args:
        knowledge: gives the model and the shape of its inputs.
        layer: name of the layer.
    """
    # The layers before it are the same in eval mode, which does not update statistics.
    model = copy.deepcopy(knowledge.model).eval()
    like = model.get_parameter(joined(layer, "weight"))
    # Where the number of samples is not told, the layers are the same for one.
    samples = max(1, knowledge.num_samples)
    inputs = torch.zeros(samples, *knowledge.input_shape).to(like)
    labels = knowledge.dummy_labels(len(inputs)).to(inputs.device)
    with torch.random.fork_rng():  # a bottleneck draws
        calls = calls_of(model, knowledge.loss, (inputs, labels))
    chain = chain_to(calls, layer, inputs)
    if chain is None or not all(isinstance(call.module, RESHAPING) for call in chain):
        return False
    first = chain[0] if chain else next(call for call in calls if call.name == layer)
    return same_entries(first.input, inputs) and not first.input_version


def drawing_layers(model: nn.Module) -> list[str]:
    """Names of the layers that draw random numbers in every forward pass outside the noise slots.

    Args:
        model: the model, in the client's mode.
    """
    return [name for name, module in model.named_modules() if draws(module)]


def sharing_layers(modules: Iterable[tuple[str, nn.Module]]) -> set[str]:
    """The layers that share a parameter with another one: its gradient is the sum over them.

    Args:
        modules: modules by name, each once, as ``named_modules`` gives them.
    """
    owners: dict[int, list[str]] = {}
    for name, module in modules:
        for value in module.parameters(recurse=False):
            owners.setdefault(id(value), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def drop_running_statistics(model: nn.Module) -> None:
    """Remove the running statistics of norm layers in train mode, which do not use them.

    Args:
        model: the model, changed in place; layers that compute otherwise than torch's are left.
    """
    each: Iterator[Any] = iter(model.modules())
    for module in each:
        own = type(module).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
        own = own or type(module).forward is _InstanceNorm.forward
        if own and module.training:
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
