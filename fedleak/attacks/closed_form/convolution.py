"""A convolution's maps that are linear in its input: to outputs, and to its weight's gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvolutionMaps:
    """The two maps that are linear in a convolution's input.

    Args:
        module: a Conv2d.
    """

    def __init__(self, module: nn.Conv2d) -> None:
        self._module = module
        # Left, right, top, bottom, as torch itself has it for the likes of padding="same".
        self._padding = module._reversed_padding_repeated_twice
        self._mode = "constant" if module.padding_mode == "zeros" else module.padding_mode

    def both(self, x: Tensor, leaving: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs without bias, and weight gradients, of many inputs at once.

        Args:
            x: inputs, ``(many, samples, in, H, W)``.
            leaving: the gradient of the outputs, ``(samples, out, H', W')``.

        Returns:
            ``(many, samples, out, H', W')``, and ``(many, out, in / groups, kH, kW)``, where the
            samples are summed up.
        """
        module, groups = self._module, self._module.groups
        many, samples = x.shape[:2]
        left, right, top, bottom = self._padding
        x = x.flatten(0, 1)
        if (left, top) == (right, bottom) and self._mode == "constant":
            padding = (top, left)
        else:
            x, padding = functional.pad(x, self._padding, self._mode), (0, 0)
        patches = functional.unfold(x, module.kernel_size, module.dilation, padding, module.stride)
        # (many * samples * groups, in / groups * kH * kW, H' * W')
        patches = patches.reshape(len(x) * groups, -1, patches.shape[-1])
        weight = module.weight.reshape(groups, module.out_channels // groups, -1)
        gradient = leaving.reshape(samples * groups, module.out_channels // groups, -1)
        outputs = weight.repeat(len(x), 1, 1).bmm(patches)
        products = gradient.repeat(many, 1, 1).bmm(patches.transpose(-1, -2))
        return (
            outputs.reshape(many, *leaving.shape),
            products.reshape(many, samples, *module.weight.shape).sum(dim=1),
        )

    def gram(self, leaving: Tensor, counted: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The Gram matrices of a plane of the input, averaged over channels and samples.

        Args:
            leaving: as for :meth:`both`.
            counted: weights of the output's equations, ``(samples, out, H', W')``.
            shape: shape of the input.

        Returns:
            Of the outputs, and of the weight gradients, ``(H * W, H * W)`` each.
        """
        module, (height, width) = self._module, shape[-2:]
        size, groups = height * width, module.groups
        # Number of the entry that a patch has at each place, 0 in a padding of zeros.
        numbers = torch.arange(1, size + 1, dtype=leaving.dtype).reshape(1, 1, height, width)
        places = functional.unfold(
            functional.pad(numbers, self._padding, self._mode), module.kernel_size,
            module.dilation, 0, module.stride,
        )[0].long()  # fmt: skip
        weight = module.weight.reshape(module.out_channels, -1, len(places))
        pairs = torch.einsum("ock,ocl->okl", weight, weight) / module.in_channels
        samples = len(leaving)
        counted = counted.square().mean(dim=0).reshape(module.out_channels, -1)
        values = torch.einsum("op,okl->klp", counted, pairs)
        outputs = torch.zeros((size + 1) ** 2, dtype=leaving.dtype)
        both = places[:, None] * (size + 1) + places[None]
        outputs.index_add_(0, both.flatten(), values.flatten())
        gradient = leaving.reshape(samples * module.out_channels, 1, -1)
        gradient = gradient.expand(-1, len(places), -1)
        spread = torch.zeros(len(gradient), len(places), size + 1, dtype=leaving.dtype)
        spread.scatter_add_(2, places.expand_as(gradient), gradient)
        spread = spread[..., 1:].reshape(-1, size)
        # A channel meets the outputs of its own group alone.
        return outputs.reshape(size + 1, -1)[1:, 1:], spread.mT @ spread / groups / samples

    def gradient(self, leaving: Tensor, shape: Sequence[int]) -> Tensor:
        """The gradient of the input, of a given shape, from that of the output."""
        point = torch.zeros(shape, dtype=leaving.dtype, requires_grad=True)
        outputs, _ = self.both(point[None], leaving)
        (found,) = torch.autograd.grad(outputs, point, leaving[None])
        return found
