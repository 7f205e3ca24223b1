"""Statistics of a received model that tell whether its update would isolate single samples."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.errors import BadInput, require
from fedleak.updates.private_model import private_copy

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Layer = nn.Linear | Convolution | Transposed
Inputs = Tensor | Mapping[str, Any]

PARALLEL = 0.9999
"""Absolute cosine from which on two rows of weights are parallel."""
FEWEST_ROWS, FEWEST_ENTRIES = 8, 32
"""Rows, and entries of a row, below which rows are parallel by chance, as where most are 0."""
LEAST = 0.05
"""Inputs of a layer over those of a sample, below which a sample in its rows says little of it."""
RARE = 0.02
"""Share of the samples below which a unit fires rarely."""
NEGLIGIBLE = 1e-4
"""Share of a unit's largest gradient below which a sample's own is taken for 0."""
EQUAL = 1e-3
"""Relative difference up to which the gradients of two units are proportional."""

BATCHES = 8
"""Batches of one size of which the exposed share is averaged."""

SKETCH = 32  # random projections in which rows are compared first
QUERIES = 4096  # rows of a layer that are compared with all
CHUNK = 64  # samples in one pass
NEIGHBOURS = 3  # units with which one is compared, in the order of how often they fire


def layers(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """The linear and convolutional layers of a model, by name.

    Args:
        model: the received model.
    """
    for name, module in model.named_modules():
        if isinstance(module, Layer):
            yield name or type(module).__name__, module


def rows(layer: Layer) -> Tensor:
    """The weights of a layer, a row for each unit or output channel.

    Args:
        layer: a linear or convolutional layer.

    Returns:
        float32, ``(units, fan-in)``.
    """
    weight = layer.weight.detach().float()
    if isinstance(layer, Transposed):
        # (in, out of a group, ...): the output channels of all groups after one another.
        groups = weight.unflatten(0, (layer.groups, -1))
        weight = groups.transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)


def parallel_rows(weights: Tensor) -> float:
    """The share of rows to which another row is parallel, at an absolute cosine above ``PARALLEL``.

    Rows are compared in random projections first, and each with the nearest one in full, so that
    time and memory stay linear in the fan-in. Of more than ``QUERIES`` rows, so many are drawn and
    compared with all. Rows of zeros are left out.

    Args:
        weights: finite, ``(units, fan-in)``.

    Returns:
        A share of the rows that are not 0; 0 if there are fewer than ``FEWEST_ROWS`` of them, or
        fewer than ``FEWEST_ENTRIES`` in each.
    """
    if len(weights) < FEWEST_ROWS or weights.shape[1] < FEWEST_ENTRIES:
        return 0.0
    largest = weights.abs().amax(1)
    weights = weights[largest > 0] / largest[largest > 0, None]
    if len(weights) < FEWEST_ROWS:
        return 0.0
    # Divided by the largest entry before, so that squares neither overflow nor vanish.
    weights = weights / weights.norm(dim=1, keepdim=True)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(weights.shape[1], SKETCH, generator=generator)
    sketch = nn.functional.normalize(weights @ directions.to(weights), dim=1)
    queries = torch.arange(len(weights), device=weights.device)
    if len(queries) > QUERIES:
        queries = torch.randperm(len(weights), generator=generator)[:QUERIES].to(weights.device)
    found = 0
    for chunk in queries.split(256):
        cosines = (sketch[chunk] @ sketch.T).abs()
        cosines[torch.arange(len(chunk)), chunk] = 0
        nearest = weights[cosines.argmax(1)]
        found += int(((weights[chunk] * nearest).sum(1).abs() > PARALLEL).sum())
    return found / len(queries)


def bias_ratio(layer: Layer) -> float:
    """The largest bias over the root mean square of the weights times the root of the fan-in.

    Args:
        layer: a linear or convolutional layer of finite weights.

    Returns:
        The ratio; 0 without a bias, or where all weights are 0.
    """
    if layer.bias is None:
        return 0.0
    weights = rows(layer).double()
    rms = float(weights.square().mean().sqrt())
    if not rms:
        return 0.0
    return float(layer.bias.detach().double().abs().max()) / (rms * math.sqrt(weights.shape[1]))


def model_input(batch: Any) -> Inputs:
    """What a model takes of a batch: its inputs alone.

    Args:
        batch: the inputs, a pair ``(inputs, labels)``, or a mapping of keyword arguments.

    Raises:
        BadInput: if it is none of these, or holds no sample.
    """
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(inputs, Tensor | Mapping):
        raise BadInput(
            "Expected `batch` to be inputs `(samples, ...)`, a pair of inputs and labels, or a "
            f"mapping of keyword arguments, got {type(inputs).__name__}."
        )
    sizes = {len(value) for value in _with_samples(inputs)}
    require(
        len(sizes) == 1,
        f"Expected tensors of one number of samples in `batch`, got {sorted(sizes) or 'none'}.",
    )
    require(sizes != {0}, "Expected at least one sample in `batch`, got none.")
    return inputs


def telling_layers(model: nn.Module, batch: Any) -> set[str]:
    """The layers whose rows, if they hold a single sample, say much of it.

    Args:
        model: the received model.
        batch: as for :func:`model_input`.

    Returns:
        The names of the layers that have at least ``LEAST`` as many inputs as a sample.
    """
    sample = _with_samples(model_input(batch))[0][0]
    return {n for n, layer in layers(model) if rows(layer).shape[1] >= LEAST * sample.numel()}


def unit_gradients(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """How much each sample contributes to the gradient of each unit of the layers.

    It is the derivative of a fixed random combination of the model's outputs with respect to the
    layer's output, summed over positions. Where it is 0, as behind a ReLU that does not fire, the
    sample is not in the unit's row of the update. The model is in eval mode meanwhile, and is left
    as it was.

    Args:
        model: the received model, of finite weights.
        batch: as for :func:`model_input`.

    Returns:
        Layer name -> ``(samples, units)``, exactly 0 where a sample contributes nothing. Layers
        that were not called with the samples as first dimension are left out.

    Raises:
        BadInput: if the model cannot compute the batch, or returns no tensor with a row for each
            sample.
    """
    inputs = model_input(batch)
    with _evaluating(model):
        parts = [_chunk_gradients(model, part) for part in _chunks(inputs)]
    names = set.intersection(*(set(part) for part in parts))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name in names}


def offsets(model: nn.Module, batch: Any) -> dict[str, float]:
    """The largest bias of each layer beside what its weights make of the samples.

    A bias is the weight of one more input, which is 1. It is compared with the other weights by
    what they contribute: the largest absolute bias, times the root mean square norm of the layer's
    inputs, over the root mean square of the outputs less their biases. Of random weights it is
    about 1.7 (uniform) to 3 (normal), at any width, scale and depth; training makes it smaller, as
    weights follow the inputs. Biases that choose for which samples a unit fires have to be as large
    as the outputs, and it is then about the norm of the inputs. The model is in eval mode
    meanwhile, and is left as it was.

    Args:
        model: the received model, of finite weights.
        batch: as for :func:`model_input`; the model can compute it.

    Returns:
        Layer name -> value. Left out are layers without biases, those that were not called, and
        those whose outputs less the biases are 0.
    """
    found = {
        name: (layer, layer.bias.detach())
        for name, layer in layers(model)
        if layer.bias is not None
    }
    inputs, outputs = ({name: _MeanSquare() for name in found} for _ in range(2))

    def listen(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        layer, bias = found[name]
        places = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)
        bias = bias.reshape(-1, *[1] * places)

        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if args:
                inputs[name].add(args[0])
                outputs[name].add(output - bias)

        return hook

    hooks = [layer.register_forward_hook(listen(name)) for name, (layer, _) in found.items()]
    try:
        with torch.no_grad(), _evaluating(model):
            for part in _chunks(model_input(batch)):
                model(**part) if isinstance(part, Mapping) else model(part)
    finally:
        for handle in hooks:
            handle.remove()
    result = {}
    for name, (layer, bias) in found.items():
        if outputs[name].value:
            norm = math.sqrt(rows(layer).shape[1] * inputs[name].value)
            largest = float(bias.double().abs().max())
            result[name] = largest * norm / math.sqrt(outputs[name].value)
    return result


class _MeanSquare:
    """The mean square of the entries of several tensors."""

    def __init__(self) -> None:
        self._total, self._entries = 0.0, 0

    def add(self, values: Tensor) -> None:
        self._total += float(values.detach().double().square().sum())
        self._entries += values.numel()

    @property
    def value(self) -> float:
        return self._total / max(1, self._entries)


def fresh_copy(model: nn.Module) -> nn.Module:
    """A copy of a model with new random weights, as far as its modules have ``reset_parameters``.

    Args:
        model: the received model, left as it is.
    """
    twin = private_copy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in twin.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return twin


def exposed_share(gradients: Tensor, size: int | None = None) -> float:
    """The share of samples that can be read one by one from a layer's rows of the gradient.

    A row of the gradient, or a combination of two rows of which one sample's gradient is left,
    holds that sample alone; it is subtracted from all rows, and so on. Two units are combined if
    their gradients are proportional on the samples for which both fire.

    Args:
        gradients: ``(samples, units)``, see :func:`unit_gradients`.
        size: number of samples in a gradient: the mean over ``BATCHES`` of so many samples, or as
            many as there are. If None, all samples are in one gradient.

    Returns:
        A share, 0 to 1; of a single sample, 0.
    """
    if size is not None:
        order = torch.randperm(len(gradients), generator=torch.Generator().manual_seed(0))
        batches = [chosen for chosen in order.split(size) if len(chosen) == size][:BATCHES]
        return sum(exposed_share(gradients[chosen]) for chosen in batches) / len(batches)
    if len(gradients) < 2:
        return 0.0
    fires = firing(gradients)
    sets = torch.cat([fires, _differences(gradients, fires)], 1)
    # As numbers: a count is corrected by the columns of the samples that were read.
    members, left = sets.int(), sets.sum(0)
    read = torch.zeros(len(gradients), dtype=torch.bool, device=gradients.device)
    while bool((alone := left == 1).any()):
        new = (sets[:, alone] & ~read[:, None]).any(1)
        read |= new
        left = left - members[new].sum(0)
    return float(read.float().mean())


def rare_share(gradients: Tensor) -> float:
    """The share of units that fire for some samples, but for less than ``RARE`` of them.

    Args:
        gradients: ``(samples, units)``, see :func:`unit_gradients`.
    """
    rate = firing(gradients).float().mean(0)
    return float(((rate > 0) & (rate < RARE)).float().mean())


def firing(gradients: Tensor) -> Tensor:
    """Whether a sample contributes to a unit's row more than a negligible part.

    Args:
        gradients: ``(samples, units)``, see :func:`unit_gradients`.

    Returns:
        bool, ``(samples, units)``.
    """
    size = gradients.abs()
    return size > NEGLIGIBLE * size.amax(0)


def _differences(gradients: Tensor, fires: Tensor) -> Tensor:
    """The samples that are left where two proportional units are combined, ``(samples, pairs)``."""
    order = fires.sum(0).argsort()
    order = order[fires.sum(0)[order] > 0]
    fires, values = fires[:, order], gradients[:, order].double()
    # Scaled, since the gradients of a model with tiny weights have squares below float32's range.
    values = values / values.abs().amax(0)
    found = []
    for offset in range(1, min(NEIGHBOURS + 1, len(order))):
        one, other = slice(None, -offset), slice(offset, None)
        both = fires[:, one] & fires[:, other]
        a, b = values[:, one] * both, values[:, other] * both
        factor = (a * b).sum(0) / b.square().sum(0).clamp_min(1e-300)
        error = (a - factor * b).abs().amax(0)
        equal = both.any(0) & (error <= EQUAL * a.abs().amax(0))
        found.append((fires[:, one] ^ fires[:, other])[:, equal])
    return torch.cat(found, 1) if found else fires[:, :0]


def _with_samples(inputs: Inputs) -> list[Tensor]:
    """The tensors of a model's input that have a row for each sample."""
    values = [inputs] if isinstance(inputs, Tensor) else inputs.values()
    return [value for value in values if isinstance(value, Tensor) and value.dim()]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; each module has its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _chunks(inputs: Inputs) -> Iterator[Inputs]:
    if isinstance(inputs, Tensor):
        yield from inputs.split(CHUNK)
        return
    for start in range(0, len(_with_samples(inputs)[0]), CHUNK):
        yield {
            name: value[start : start + CHUNK]
            if isinstance(value, Tensor) and value.dim()
            else value
            for name, value in inputs.items()
        }


def _chunk_gradients(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """The gradients of :func:`unit_gradients` of samples that fit into memory at once."""
    calls: list[tuple[str, Tensor]] = []

    def listen(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if not isinstance(output, Tensor):
                return output
            if not output.requires_grad:
                output.requires_grad_()
            calls.append((name, output))
            # A copy goes on, as an activation may change its input in place.
            return output.clone()

        return hook

    hooks = [layer.register_forward_hook(listen(name)) for name, layer in layers(model)]
    try:
        with torch.enable_grad():
            result = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
            size = len(_with_samples(inputs)[0])
            loss = _combination(result, size)
            found = [(n, out) for n, out in calls if out.dim() > 1 and len(out) == size]
            derivatives = torch.autograd.grad(
                loss, [out for _, out in found], materialize_grads=True
            )
    except BadInput:
        raise
    except Exception as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(
            f"Expected a batch that {type(model).__name__} can compute, got the error: "
            f"{text[0][:200]}"
        ) from error
    finally:
        for handle in hooks:
            handle.remove()
    channels_last = {n for n, layer in layers(model) if isinstance(layer, nn.Linear)}
    gradients: dict[str, Tensor] = {}
    for (name, _), derivative in zip(found, derivatives, strict=True):
        value = derivative.float()
        value = value.movedim(-1, 1) if name in channels_last else value
        value = value.flatten(2).sum(2) if value.dim() > 2 else value
        gradients[name] = gradients.get(name, 0) + value.detach()
    return gradients


def _combination(result: Any, size: int) -> Tensor:
    """A random combination of a model's outputs, the same of every sample, summed."""
    outputs = [
        value.float() for value in _tensors(result)
        if value.is_floating_point() and value.requires_grad and value.dim() and len(value) == size
    ]  # fmt: skip
    if not outputs:
        raise BadInput(
            f"Expected the model to return a tensor with a row for each of {size} samples, got "
            f"{_described(result, size)}."
        )
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), device=outputs[0].device)
    for output in outputs:
        direction = torch.randn(output.shape[1:], generator=generator).to(output.device)
        total = total + (output * direction).sum()
    return total


def _described(result: Any, size: int) -> str:
    """Why a model's result cannot be used."""
    found = next(_tensors(result), None)
    if found is None:
        return type(result).__name__
    text = f"Tensor of shape {tuple(found.shape)}"
    if not found.is_floating_point():
        return f"{text} and type {found.dtype}"
    has_rows = found.dim() > 0 and len(found) == size
    depends = ", which depends on no linear or convolutional layer"
    return text + (depends if has_rows and not found.requires_grad else "")


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from _tensors(value)
    elif isinstance(result, tuple | list):
        for value in result:
            yield from _tensors(value)
