"""Output of convolutions and activations, gradients of their parameters, and the way back.

Autograd differentiates weight gradients once more by recording the backward pass. Here both passes
and the way back through both are products with unfolded patches, which costs a part of that.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.module_calls import Call
from fedleak.updates.files import Tensors


class Slopes(NamedTuple):
    """An activation's output, and its first and second derivative. All of one shape."""

    value: Tensor
    first: Tensor
    second: Tensor


def _sigmoid(x: Tensor) -> Slopes:
    value = x.sigmoid()
    first = value * (1 - value)
    return Slopes(value, first, first * (1 - 2 * value))


def _tanh(x: Tensor) -> Slopes:
    value = x.tanh()
    first = 1 - value.square()
    return Slopes(value, first, -2 * value * first)


def _relu(x: Tensor) -> Slopes:
    return Slopes(x.relu(), (x > 0).to(x), torch.zeros_like(x))


ACTIVATIONS: dict[type[nn.Module], Callable[[Tensor], Slopes]] = {
    nn.Sigmoid: _sigmoid, nn.Tanh: _tanh, nn.ReLU: _relu
}  # fmt: skip
# Most entries of the patches of all convolutions, which are kept at once: 128 MiB in float64.
LARGEST_PATCHES = 2**24


class ConvolutionChain:
    """Convolutions and elementwise activations of :data:`ACTIVATIONS`, one after the other.

    Args:
        layers: their calls, from the first on; :meth:`applies` has to hold.
    """

    def __init__(self, layers: Sequence[Call]) -> None:
        self._layers = [
            _Convolution(c) if type(c.module) is nn.Conv2d else _Activation(c) for c in layers
        ]

    @staticmethod
    def applies(layers: Sequence[Call]) -> bool:
        """Whether this class knows all layers, and their patches fit into memory."""
        convolutions = [call for call in layers if type(call.module) is nn.Conv2d]
        return (
            all(type(c.module) in {nn.Conv2d, *ACTIVATIONS} for c in layers)
            and all(map(_is_plain, convolutions))
            and sum(map(_patch_entries, convolutions)) <= LARGEST_PATCHES
        )

    def forward(
        self, x: Tensor, output_gradient: Tensor, names: Collection[str]
    ) -> tuple[Tensor, Tensors]:
        """The output for an input, and gradients of parameters.

        Args:
            x: the input, ``(samples, C, H, W)``.
            output_gradient: gradient of the loss with respect to the output.
            names: the parameters whose gradients are asked for.

        Returns:
            The output, and the gradient of each of the parameters by its name.
        """
        for layer in self._layers:
            x = layer.forward(x)
        found: Tensors = {}
        signal: Tensor = output_gradient
        left = set(names)
        for layer in reversed(self._layers):
            if not left:
                break
            own = layer.gradients(signal, left)
            found |= own
            left -= set(own)
            if left:
                signal = layer.pass_signal()
        return x, {name: found[name] for name in names}

    def backward(self, output: Tensor, gradients: Mapping[str, Tensor]) -> Tensor:
        """The gradient of a function of what :meth:`forward` returned last, in the input.

        Args:
            output: gradient of the function with respect to the output.
            gradients: the same with respect to the parameters' gradients, by name.
        """
        signal: Tensor | None = None
        for layer in self._layers:
            signal = layer.return_signal(signal, gradients)
        for layer in reversed(self._layers):
            output = layer.backward(output)
        return output


def _is_plain(call: Call) -> bool:
    module = call.module
    assert isinstance(module, nn.Conv2d)
    return (
        module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and call.input.dim() == 4
        # Weight normalisation computes the weight from other parameters.
        and {name for name, _ in module.named_parameters()} <= {"weight", "bias"}
    )


def _patch_entries(call: Call) -> int:
    module = call.module
    assert isinstance(module, nn.Conv2d)
    return module.weight[0].numel() * call.output.numel() // module.out_channels


class _Convolution:
    """One convolution; tensors between the methods are those of the last pass."""

    def __init__(self, call: Call) -> None:
        module = call.module
        assert isinstance(module, nn.Conv2d)
        self._names = [f"{call.name}.{kind}" for kind in ("weight", "bias")]
        self._input, self._output = call.input.shape, call.output.shape
        padding = module.padding
        assert not isinstance(padding, str)
        self._geometry = module.kernel_size, module.dilation, padding, module.stride
        self._shape = module.weight.shape
        self._weight = module.weight.detach().flatten(1)
        bias = torch.zeros(1, dtype=self._weight.dtype) if module.bias is None else module.bias
        self._bias = bias.detach()[:, None]
        self._patches = self._signal = torch.empty(0)
        self._back: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self._patches = self._unfold(x)
        return _first(torch.addmm(self._bias, self._weight, self._patches), self._output)

    def gradients(self, signal: Tensor, names: Collection[str]) -> Tensors:
        """The gradients of its own parameters among some, for that of its output."""
        self._signal = _last(signal.reshape(self._output))
        weight, bias = self._names
        found = {}
        if weight in names:
            found[weight] = (self._signal @ self._patches.mT).reshape(self._shape)
        if bias in names:
            found[bias] = self._signal.sum(dim=1)
        return found

    def pass_signal(self) -> Tensor:
        """The gradient of its input, for the last one of its output."""
        return self._fold(self._weight.mT @ self._signal)

    def return_signal(
        self, signal: Tensor | None, gradients: Mapping[str, Tensor]
    ) -> Tensor | None:
        """The way back of :meth:`gradients` and :meth:`pass_signal`; None stands for 0."""
        weight, bias = (gradients.get(name) for name in self._names)
        self._back, found = None, None
        if signal is not None:
            found = self._weight @ self._unfold(signal)
        if weight is not None:
            own = weight.flatten(1)
            self._back = own.mT @ self._signal
            parts = own @ self._patches
            found = parts if found is None else found + parts
        if bias is not None:
            parts = bias[:, None].expand_as(self._signal)
            found = parts if found is None else found + parts
        return None if found is None else _first(found, self._output)

    def backward(self, output: Tensor) -> Tensor:
        """The way back of :meth:`forward`, and of the patches in :meth:`gradients`."""
        output, transpose = _last(output.reshape(self._output)), self._weight.mT
        if self._back is None:
            return self._fold(transpose @ output)
        return self._fold(torch.addmm(self._back, transpose, output))

    def _unfold(self, x: Tensor) -> Tensor:
        """The patches of an input, ``(C * kH * kW, samples * H' * W')``."""
        return _last(functional.unfold(x.reshape(self._input), *self._geometry))

    def _fold(self, patches: Tensor) -> Tensor:
        """The transpose of :meth:`_unfold`."""
        kernel, dilation, padding, stride = self._geometry
        samples, *_, height, width = self._input
        patches = _first(patches, (samples, len(patches), -1))
        return functional.fold(patches, (height, width), kernel, dilation, padding, stride)


class _Activation:
    """One activation; see :class:`_Convolution`."""

    def __init__(self, call: Call) -> None:
        self._slopes = ACTIVATIONS[type(call.module)]
        self._shape = call.input.shape
        self._signal = torch.empty(0)
        self._back: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self._at = self._slopes(x.reshape(self._shape))
        return self._at.value

    def gradients(self, signal: Tensor, _names: Collection[str]) -> Tensors:
        self._signal = signal.reshape(self._shape)
        return {}

    def pass_signal(self) -> Tensor:
        return self._signal * self._at.first

    def return_signal(
        self, signal: Tensor | None, _gradients: Mapping[str, Tensor]
    ) -> Tensor | None:
        self._back = None
        if signal is None:
            return None
        signal = signal.reshape(self._shape)
        self._back = signal * self._signal * self._at.second
        return signal * self._at.first

    def backward(self, output: Tensor) -> Tensor:
        found = output.reshape(self._shape) * self._at.first
        return found if self._back is None else found + self._back


def _last(values: Tensor) -> Tensor:
    """``(samples, C, ...)`` as ``(C, samples * ...)``; of one sample, a view."""
    return values.transpose(0, 1).reshape(values.shape[1], -1)


def _first(values: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`_last`, for the shape ``(samples, C, ...)``."""
    return values.reshape(shape[1], shape[0], -1).transpose(0, 1).reshape(shape)
