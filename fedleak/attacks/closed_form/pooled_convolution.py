"""A convolution, ReLU and max pooling right before a known layer, whatever computes the latter."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedleak.attacks.closed_form.smooth_kinks import POOLINGS, pair
from fedleak.attacks.closed_form.trunk import Trunk
from fedleak.attacks.module_calls import Call


class PooledConvolution(NamedTuple):
    """A convolution whose output, after ReLU and max pooling, is a known layer's input.

    Args:
        name: the convolution's path in the model.
        weight: its weight, ``(out, in, kH, kW)``.
        bias: its bias, ``(out,)``; zeros if it has none.
        shape: shape of its input, ``(1, in, H, W)``.
        patches: pixels that an output position sees, ``(kH * kW, positions)``; a pixel is its
            number in the plane, or ``H * W`` where it is padding.
        windows: output positions among which the largest is pooled, ``(units, size)``; the number
            of positions where they are padding.
    """

    name: str
    weight: Tensor
    bias: Tensor
    shape: torch.Size
    patches: Tensor
    windows: Tensor


def pooled_convolution(
    model: nn.Module,
    loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor],
    batch: tuple[Tensor, Tensor],
    calls: Sequence[Call],
    layer: str,
) -> PooledConvolution | None:
    """The convolution before a layer, if only ReLU, and no or one max pooling, lie between.

    That is tested, not read from the code: with random numbers as the convolution's output, the
    layer's input must be those numbers after ReLU and pooling.

    Args:
        model: the model, in the client's modes; it is left as it is.
        loss: the loss of a batch.
        batch: inputs of one sample and labels; of the inputs, only the shape is used.
        calls: the model's calls.
        layer: name of a layer that is called once.
    """
    names = [call.name for call in calls]
    before = [c for c in calls[: names.index(layer)] if type(c.module) is nn.Conv2d]
    if not before or names.count(before[-1].name) > 1:
        return None
    call = before[-1]
    module = call.module
    assert isinstance(module, nn.Conv2d)
    if module.groups > 1 or module.padding_mode != "zeros" or call.input.dim() != 4:
        return None
    settings = _pooling_after(model, loss, batch, call, layer)
    if settings is None:
        return None
    height, width = call.input.shape[2:]
    plane = torch.arange(height * width, dtype=torch.float64).reshape(1, 1, height, width)
    # Left, right, top, bottom; torch resolves padding="same" into these itself.
    plane = functional.pad(plane, module._reversed_padding_repeated_twice, value=height * width)
    patches = functional.unfold(plane, module.kernel_size, module.dilation, 0, module.stride)
    size = call.output.shape[2:]
    positions = torch.arange(size.numel(), dtype=torch.float64).reshape(1, 1, *size)
    windows = positions.reshape(-1, 1)
    if settings:
        kernel, stride, (above, beside), dilation = settings
        padded = functional.pad(positions, (beside, beside, above, above), value=size.numel())
        windows = functional.unfold(padded, kernel, dilation, 0, stride)[0].mT
    bias = torch.zeros(module.out_channels) if module.bias is None else module.bias.detach()
    return PooledConvolution(
        call.name, module.weight.detach().double(), bias.double(), call.input.shape,
        patches[0].long(), windows.long(),
    )  # fmt: skip


Pair = tuple[int, int]


def _pooling_after(
    model: nn.Module,
    loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor],
    batch: tuple[Tensor, Tensor],
    call: Call,
    layer: str,
) -> tuple[Pair, Pair, Pair, Pair] | tuple[()] | None:
    """Kernel, stride, padding and dilation of the pooling; none of them without one.

    None if something else lies between the convolution and the layer.
    """
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(call.output.shape, generator=generator, dtype=torch.float64)
    model = copy.deepcopy(model)
    convolution = model.get_submodule(call.name)
    convolution.register_forward_hook(lambda *_: made.clone().requires_grad_().clone())
    trunk = Trunk(model, loss, batch, layer)
    with _Poolings(made.shape) as seen, torch.no_grad():
        entering = trunk(batch[0])
    if len(seen.found) > 1:
        return None
    settings = seen.found[0] if seen.found else ()
    expected = made.relu()
    if settings:
        kernel, stride, padding, dilation = settings
        expected = functional.max_pool2d(expected, kernel, stride, padding, dilation)
    alike = entering.numel() == expected.numel()
    return settings if alike and torch.equal(entering.flatten(), expected.flatten()) else None


class _Poolings(TorchFunctionMode):
    """Notes the settings of max poolings of inputs of a shape; others are none of its concern."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self._shape = shape
        self.found: list[tuple[Pair, Pair, Pair, Pair]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in POOLINGS:
            self._note(*args, **kwargs)
        return func(*args, **kwargs)

    def _note(
        self, input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
        dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False,
    ) -> None:  # fmt: skip
        if input.shape == self._shape and not ceil_mode:
            step = pair(stride or kernel_size)
            self.found.append((pair(kernel_size), step, pair(padding), pair(dilation)))
