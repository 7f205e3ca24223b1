"""What the figures of a run and of a sweep have in common when they are drawn."""

import numpy as np
from PIL import Image

from fedleak.runs.scoring import Picture


def fitted(picture: Picture, side: int) -> Image.Image:
    """A picture enlarged or reduced for a figure, in colour.

    Whole pixels become blocks where there is room, so that nothing is smoothed away.

    Args:
        picture: pixels ``(H, W)`` or ``(H, W, 3)``.
        side: pixels of the longer side in the figure.
    """
    factor = side / max(picture.shape[:2])
    height, width = (max(1, int(length * factor)) for length in picture.shape[:2])
    image = Image.fromarray(np.ascontiguousarray(picture)).convert("RGB")
    smooth = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX
    return image.resize((width, height), smooth)
