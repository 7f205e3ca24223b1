"""What is known of images before an update is seen."""

from torch import Tensor


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
