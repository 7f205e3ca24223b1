"""Pieces of 32 x 32 pixels of a photograph."""

import torch
from skimage import data
from torch import Tensor

SIDE, STRIDE = 32, 4


def larger_images(number: int, seed: int) -> Tensor:
    """Whole numbers from 0 to 255, ``(number, 3, 32, 32)``, float64."""
    photograph = torch.from_numpy(data.astronaut()).permute(2, 0, 1).double()
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(512 - STRIDE * SIDE, (number, 2), generator=generator).tolist()
    # Every fourth pixel, so that a piece holds as much as a small photograph does.
    return torch.stack(
        [
            photograph[:, y : y + STRIDE * SIDE : STRIDE, x : x + STRIDE * SIDE : STRIDE]
            for y, x in corners
        ]
    )
