"""What is known of images before an update is seen."""

from collections.abc import Mapping

import torch
from torch import Tensor

# Mean and unbiased variance of each channel of what entered a batch-norm layer, by layer.
Statistics = dict[str, tuple[Tensor, Tensor]]


def total_variation(images: Tensor) -> Tensor:
    """Anisotropic total variation: mean absolute step to the next column plus to the next row.

    Args:
        images: ``(..., H, W)``, any number of channels; a side of length 1 contributes nothing.

    Returns:
        A scalar.
    """
    across = images.diff(dim=-1).abs()
    down = images.diff(dim=-2).abs()
    return across.sum() / max(across.numel(), 1) + down.sum() / max(down.numel(), 1)


def batch_norm_distance(
    statistics: Mapping[str, tuple[Tensor, Tensor]], target: Mapping[str, tuple[Tensor, Tensor]]
) -> Tensor:
    """Distance of a dummy batch's statistics from the expected ones (GradInversion, eq. 10).

    Args:
        statistics: of the dummy batch: mean and variance ``(channels,)`` by batch-norm layer.
        target: the expected ones, of some or all of these layers.

    Returns:
        A scalar: the Euclidean distances of means and of variances, summed over the layers.
    """
    total = []
    for name, expected in target.items():
        for value, wanted in zip(statistics[name], expected, strict=True):
            # The root's slope at 0 is infinite, which the smallest number above 0 mends.
            squares = (value - wanted).square().sum()
            total.append((squares + torch.finfo(squares.dtype).tiny).sqrt())
    return torch.stack(total).sum()
