"""Patches of eight real photographs that come with scikit-image; nothing is downloaded."""

from functools import lru_cache
from importlib.resources import as_file, files

import numpy as np
import numpy.typing as npt
import torch
from skimage.io import imread
from skimage.transform import downscale_local_mean

from fedleak.data.images import ImageData, ImageSet

PATCH = 32
STRIDE = 8
TRAIN_PER_CLASS = 600
TEST_PER_CLASS = 100
# A patch whose standard deviation (on the scale 0 to 255, in the channel with the largest one) is
# below this is flat: night sky, the black around the retina, an empty table.
MIN_CONTRAST = 10.0

# File in scikit-image's data folder and the integer factor by which it is downscaled: patches of
# the two largest photographs would otherwise show hardly any structure.
_PHOTOGRAPHS = {
    "astronaut": ("astronaut.png", 1),
    "chelsea": ("chelsea.png", 1),
    "coffee": ("coffee.png", 1),
    "ihc": ("ihc.png", 1),
    "motorcycle": ("motorcycle_left.png", 1),
    "hubble": ("hubble_deep_field.jpg", 2),
    "retina": ("retina.jpg", 3),
    "rocket": ("rocket.jpg", 1),
}

# Mean and standard deviation of the training patches; a test recomputes them.
MEAN = (0.491812, 0.348760, 0.299587)
STD = (0.303599, 0.238052, 0.232769)

_Images = npt.NDArray[np.uint8]
_Labels = npt.NDArray[np.int64]


def _photograph(file: str, factor: int) -> _Images:
    """Read one photograph, uint8 (H, W, 3), from the installed package."""
    with as_file(files("skimage") / "data" / file) as path:
        photograph: _Images = np.asarray(imread(path))
    if factor > 1:
        reduced = np.asarray(downscale_local_mean(photograph, (factor, factor, 1)))
        photograph = np.rint(reduced).astype(np.uint8)
    return photograph


def _patches(region: _Images, count: int) -> _Images:
    """Cut ``count`` patches, (count, 3, 32, 32), evenly spaced among those with contrast."""
    windows = np.lib.stride_tricks.sliding_window_view(region, (PATCH, PATCH), axis=(0, 1))
    candidates = windows[::STRIDE, ::STRIDE].reshape(-1, 3, PATCH, PATCH)
    contrast = candidates.std(axis=(2, 3)).max(axis=1)
    candidates = candidates[contrast >= MIN_CONTRAST]
    chosen = np.linspace(0, len(candidates) - 1, count).round().astype(np.int64)
    patches: _Images = candidates[chosen]
    return patches


@lru_cache(maxsize=1)
def photo_patches() -> tuple[_Images, _Labels, _Images, _Labels]:
    """Cut all patches; cached per process, so the arrays must not be modified.

    Returns:
        Training images, uint8 (4800, 3, 32, 32), their labels, int64 (4800,), test images,
        uint8 (800, 3, 32, 32), and their labels, int64 (800,).
    """
    train, test = [], []
    for file, factor in _PHOTOGRAPHS.values():
        photograph = _photograph(file, factor)
        border = len(photograph) * 4 // 5
        train.append(_patches(photograph[:border], TRAIN_PER_CLASS))
        test.append(_patches(photograph[border:], TEST_PER_CLASS))
    labels = np.arange(len(_PHOTOGRAPHS))
    return (
        np.concatenate(train),
        labels.repeat(TRAIN_PER_CLASS),
        np.concatenate(test),
        labels.repeat(TEST_PER_CLASS),
    )


class Photos(ImageData):
    """Patches of eight photographs, one class each: 3x32x32, 4,800 training and 800 test images.

    The default data: it needs no network and no file, as the photographs are part of scikit-image
    (an astronaut, a cat, a cup of coffee, stained tissue, a motorcycle, galaxies, a retina and a
    rocket). Training patches are in the upper four fifths of a photograph and test patches below
    them, so they share no pixel. Flat patches are left out; the choice is deterministic.

    Args:
        batch_size: images per batch in all loaders.
    """

    name = "photos"

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return the training and the test patches."""
        self.class_names = list(_PHOTOGRAPHS)
        train_images, train_labels, test_images, test_labels = (
            torch.from_numpy(array) for array in photo_patches()
        )
        return (
            ImageSet(train_images, train_labels, mean=MEAN, std=STD),
            ImageSet(test_images, test_labels, mean=MEAN, std=STD),
        )
