"""Drawing functions shared by the figures of runs and sweeps."""

import numpy as np
from PIL import Image

from fedleak.runs.scoring import Picture


def fitted(picture: Picture, side: int) -> Image.Image:
    """Resize a picture for a figure.

    Enlarging repeats pixels and does not smooth them; reducing averages them.

    Args:
        picture: pixels ``(H, W)`` or ``(H, W, 3)``, 0 to 255.
        side: length of the longer side in the figure, in pixels.

    Returns:
        The picture in RGB.
    """
    factor = side / max(picture.shape[:2])
    height, width = (max(1, int(length * factor)) for length in picture.shape[:2])
    image = Image.fromarray(np.ascontiguousarray(picture)).convert("RGB")
    filter_ = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX
    return image.resize((width, height), filter_)
