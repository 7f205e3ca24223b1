"""The two maps of a convolution that are linear in its input: output and weight gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvolutionMaps:
    """Output and weight gradient of a 2D convolution as linear maps of its input.

    Args:
        module: the convolution.
    """

    def __init__(self, module: nn.Conv2d) -> None:
        self._module = module
        # Left, right, top, bottom; torch resolves padding="same" into these itself.
        self._padding = module._reversed_padding_repeated_twice
        self._mode = "constant" if module.padding_mode == "zeros" else module.padding_mode

    def outputs_and_weight_gradients(
        self, x: Tensor, output_gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outputs without bias, and weight gradients, for several inputs at once.

        Args:
            x: inputs, ``(many, samples, in, H, W)``.
            output_gradient: gradient of the outputs, ``(samples, out, H', W')``.

        Returns:
            Outputs ``(many, samples, out, H', W')``, and weight gradients
            ``(many, out, in / groups, kH, kW)``, summed over the samples.
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
        gradient = output_gradient.reshape(samples * groups, module.out_channels // groups, -1)
        outputs = weight.repeat(len(x), 1, 1).bmm(patches)
        products = gradient.repeat(many, 1, 1).bmm(patches.transpose(-1, -2))
        return (
            outputs.reshape(many, *output_gradient.shape),
            products.reshape(many, samples, *module.weight.shape).sum(dim=1),
        )

    def gram_matrices(
        self, output_gradient: Tensor, weights: Tensor, shape: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Gram matrices of the two maps for one plane of the input.

        They are averaged over the channels and samples of the input.

        Args:
            output_gradient: gradient of the outputs, ``(samples, out, H', W')``.
            weights: weights of the output equations, ``(samples, out, H', W')``.
            shape: shape of the input, ``(samples, in, H, W)``.

        Returns:
            Of the outputs and of the weight gradients, ``(H * W, H * W)`` each.
        """
        module, (height, width) = self._module, shape[-2:]
        size, groups = height * width, module.groups
        places = self._places(height, width)
        kernel = module.weight.reshape(module.out_channels, -1, len(places))
        pairs = torch.einsum("ock,ocl->okl", kernel, kernel) / module.in_channels
        samples = len(output_gradient)
        squares = weights.square().mean(dim=0).reshape(module.out_channels, -1)
        values = torch.einsum("op,okl->klp", squares, pairs)
        outputs = torch.zeros((size + 1) ** 2, dtype=output_gradient.dtype)
        both = places[:, None] * (size + 1) + places[None]
        outputs.index_add_(0, both.flatten(), values.flatten())
        gradient = output_gradient.reshape(samples * module.out_channels, 1, -1)
        spread = _spread(gradient, places, size).reshape(-1, size)
        # An input channel contributes to the outputs of its own group only.
        return outputs.reshape(size + 1, -1)[1:, 1:], spread.mT @ spread / groups / samples

    def whole_gram_matrix(
        self,
        output_gradient: Tensor,
        weights: Tensor,
        shape: Sequence[int],
        scales: Sequence[float],
    ) -> Tensor:
        """Sum of the Gram matrices of the two maps for all of the input, each times its scale.

        Args:
            output_gradient: gradient of the outputs, ``(samples, out, H', W')``.
            weights: weights of the output equations, ``(samples, out, H', W')``.
            shape: shape of the input, ``(samples, in, H, W)``.
            scales: factor of the outputs' matrix, and of that of the weight gradients if these are
                equations as well.

        Returns:
            ``(n, n)`` for the n entries of the input.
        """
        module, (samples, channels, height, width) = self._module, shape
        size, groups = height * width, module.groups
        inner, outer = channels // groups, module.out_channels // groups
        places = self._places(height, width)
        whole = torch.zeros((samples * channels * size,) * 2, dtype=output_gradient.dtype)
        flat = whole.flatten()
        kernel = module.weight.reshape(groups, outer, inner, -1)
        strength = weights.square().reshape(samples, groups, outer, -1) * scales[0]
        firsts = size * torch.arange(samples * channels).reshape(samples, groups, inner, 1)
        for position, inside in enumerate((places > 0).unbind(dim=1)):
            entries = places[inside, position] - 1
            rows = kernel[..., inside].reshape(groups, outer, -1)
            for sample in range(samples):
                for group in range(groups):
                    row = rows[group]
                    own = row.mT @ (strength[sample, group, :, position, None] * row)
                    at = (firsts[sample, group] + entries).flatten()
                    flat.index_add_(0, (at[:, None] * len(whole) + at).flatten(), own.flatten())
        if len(scales) > 1:
            gradient = output_gradient.reshape(samples, groups, outer, 1, -1)
            for group in range(groups):
                spread = _spread(gradient[:, group].flatten(0, 1), places, size)
                spread = spread.reshape(samples, -1, size).transpose(0, 1).flatten(1)
                own = scales[1] * (spread.mT @ spread).reshape(samples, size, samples, size)
                split = whole.reshape(samples, channels, size, samples, channels, size)
                for channel in range(group * inner, (group + 1) * inner):
                    split[:, channel, :, :, channel] += own
        return whole

    def input_gradient(self, output_gradient: Tensor, shape: Sequence[int]) -> Tensor:
        """Gradient of the input.

        Args:
            output_gradient: gradient of the output, ``(samples, out, H', W')``.
            shape: shape of the input, ``(samples, in, H, W)``.
        """
        point = torch.zeros(shape, dtype=output_gradient.dtype, requires_grad=True)
        outputs, _ = self.outputs_and_weight_gradients(point[None], output_gradient)
        (found,) = torch.autograd.grad(outputs, point, output_gradient[None])
        return found

    def _places(self, height: int, width: int) -> Tensor:
        """Number of the pixel at each entry and position of a patch, from 1 on; 0 is padding.

        Returns:
            ``(kH * kW, H' * W')``.
        """
        module = self._module
        numbers = torch.arange(1, height * width + 1, dtype=torch.float64)
        padded = functional.pad(numbers.reshape(1, 1, height, width), self._padding, self._mode)
        return functional.unfold(
            padded, module.kernel_size, module.dilation, 0, module.stride
        )[0].long()  # fmt: skip


def _spread(gradient: Tensor, places: Tensor, size: int) -> Tensor:
    """The coefficients of each pixel in the weight gradients of one input channel.

    Args:
        gradient: gradient of the outputs, ``(rows, 1, H' * W')``.
        places: see :meth:`ConvolutionMaps._places`.
        size: number of pixels.

    Returns:
        ``(rows, kH * kW, size)``.
    """
    gradient = gradient.expand(-1, len(places), -1)
    spread = torch.zeros(len(gradient), len(places), size + 1, dtype=gradient.dtype)
    return spread.scatter_add_(2, places.expand_as(gradient), gradient)[..., 1:]
