"""A data set of labelled images in one .npz file."""

import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib import format as npy

from fedleak.data.images import ImageData, ImageSet, channel_statistics, find_data_path
from fedleak.errors import BadInput, require
from fedleak.updates.files import LARGEST

_IMAGE_KEYS = ("images", "x", "data")
_LABEL_KEYS = ("labels", "y", "targets")
_SPLIT_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
_SPLIT_SEED = 0

# Version of the format -> function that reads its header. Version 3 is for field names beyond
# Latin-1; numeric arrays have no fields.
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

_Array = npt.NDArray[Any]
_Pair = tuple[_Array, _Array]


class Npz(ImageData):
    """Images and labels from a .npz file; pickled arrays are never read.

    The file contains either ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``
    (as MedMNIST's files do; their ``val_*`` arrays are ignored), or one array of images
    (``images``, ``x`` or ``data``) and one of labels (``labels``, ``y`` or ``targets``); the last
    part of a fixed permutation of them becomes the test set. Images are (N, H, W, C),
    (N, C, H, W) or (N, H, W) with 1 or 3 channels, labels are integers from 0, (N,) or (N, 1).

    Args:
        path: the file; see :func:`fedleak.data.images.find_data_path`.
        normalised: whether float images have been normalised with ``mean`` and ``std``; otherwise
            images are uint8 pixels or floats in [0, 1].
        mean: one value per channel, on the scale [0, 1]. If None, computed from the training
            images.
        std: one positive value per channel, on the scale [0, 1]. If None, computed from the
            training images.
        test_fraction: share of the images that becomes the test set if the file has none, at
            least 0 and below 1; rounded up to one image. With 0 the test set is the training set
            itself.
        batch_size: images per batch in all loaders.

    Raises:
        BadInput: if ``test_fraction`` is out of range, only one of ``mean`` and ``std`` is given,
            or ``normalised`` is set without them.
    """

    name = "npz"

    def __init__(
        self,
        *,
        path: str,
        normalised: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        test_fraction: float = 0.1,
        batch_size: int = 64,
    ) -> None:
        super().__init__(batch_size=batch_size)
        if not 0 <= test_fraction < 1:
            raise BadInput(
                f"Expected `test_fraction` to be at least 0 and below 1, got {test_fraction}."
            )
        if (mean is None) != (std is None):
            raise BadInput(
                "Expected `mean` and `std` together, "
                f"got only `{'std' if mean is None else 'mean'}`; give both or neither."
            )
        if normalised and mean is None:
            raise BadInput(
                "Expected `mean` and `std` with `normalised: true`, got neither; "
                "give the values that the images were normalised with, one a channel."
            )
        self.path = path
        self.normalised = normalised
        self._given = None if mean is None or std is None else (tuple(mean), tuple(std))
        self.test_fraction = test_fraction

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return the training and the test images.

        Raises:
            BadInput: if the file is missing, damaged, pickled, lacks such arrays, or unpacks to
                more than ``updates.files.LARGEST`` bytes.
        """
        train, test = self._read()
        if not len(train[0]) or not len(test[0]):
            raise BadInput(
                "Expected at least one training and one test image, "
                f"got {len(train[0])} and {len(test[0])} in `{self.path}`."
            )
        mean, std = self._given or channel_statistics(train[0])
        if self._given is None and min(std) == 0:
            raise BadInput(
                "Expected pixels that vary in every channel of the training images, got the "
                f"standard deviations {list(std)} in `{self.path}`; set `mean` and `std` yourself."
            )
        train_set, test_set = (
            ImageSet(
                torch.from_numpy(images),
                torch.from_numpy(labels),
                mean=mean,
                std=std,
                normalised=self.normalised,
            )
            for images, labels in (train, test)
        )
        return train_set, test_set

    def _read(self) -> tuple[_Pair, _Pair]:
        """Return images (N, C, H, W) and labels (N,) for training and for testing."""
        arrays = read_arrays(self.path, self._keys, ("images", "labels"))
        pairs = list(arrays.values())
        train = self._pair(pairs[0], pairs[1])
        if len(pairs) == 4:
            return train, self._pair(pairs[2], pairs[3])
        return self._split(train)

    def _keys(self, found: list[str]) -> tuple[str, ...]:
        if set(_SPLIT_KEYS) <= set(found):
            return _SPLIT_KEYS
        images = [key for key in _IMAGE_KEYS if key in found]
        labels = [key for key in _LABEL_KEYS if key in found]
        if not images or not labels:
            raise BadInput(
                f"Expected the arrays {', '.join(_SPLIT_KEYS)}, or one of "
                f"{', '.join(_IMAGE_KEYS)} with one of {', '.join(_LABEL_KEYS)}, got "
                f"{', '.join(found) or 'none'} in `{self.path}`; rename the arrays."
            )
        return images[0], labels[0]

    def _pair(self, images: _Array, labels: _Array) -> _Pair:
        if images.ndim == 0 or labels.ndim == 0 or len(images) != len(labels):
            raise BadInput(
                "Expected as many labels as images, got images of shape "
                f"{images.shape} and labels of shape {labels.shape} in `{self.path}`."
            )
        return self._images(images), self._labels(labels)

    def _images(self, images: _Array) -> _Array:
        images = self._channels_first(images)
        if images.dtype == np.uint8 and not self.normalised:
            return images
        if images.dtype.kind != "f":
            raise BadInput(
                f"Expected images of type {'float' if self.normalised else 'uint8 or float'} "
                f"(`normalised` is {str(self.normalised).lower()}), got {images.dtype} in "
                f"`{self.path}`."
            )
        images = images.astype(np.float32)
        if not self.normalised and images.size:
            low, high = float(images.min()), float(images.max())
            if not (low >= 0 and high <= 1):  # written so that NaN fails as well
                raise BadInput(
                    f"Expected float images to lie within [0, 1], got [{low:.4g}, {high:.4g}] in "
                    f"`{self.path}`; set `normalised` to true with `mean` and `std` if they are "
                    "normalised, or divide them by the largest pixel value."
                )
        return images

    def _channels_first(self, images: _Array) -> _Array:
        if images.ndim == 3:
            return images[:, None]
        first = images.ndim == 4 and images.shape[1] in (1, 3)
        last = images.ndim == 4 and images.shape[3] in (1, 3)
        if first == last:
            found = "both the second and the last axis do" if first else "none does"
            raise BadInput(
                "Expected images of shape (N, H, W), or (N, C, H, W) or (N, H, W, C) in which one "
                f"axis has 1 or 3 channels, got {images.shape} in `{self.path}`, where {found}."
            )
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if last else images

    def _labels(self, labels: _Array) -> npt.NDArray[np.int64]:
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise BadInput(
                "Expected labels to be whole numbers of shape (N,) or (N, 1), "
                f"got {labels.dtype} of shape {labels.shape} in `{self.path}`."
            )
        return labels.astype(np.int64)

    def _split(self, pair: _Pair) -> tuple[_Pair, _Pair]:
        if self.test_fraction == 0:
            return pair, pair
        images, labels = pair
        num_test = max(1, round(len(labels) * self.test_fraction))
        order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
        train, test = order[:-num_test], order[-num_test:]
        return (images[train], labels[train]), (images[test], labels[test])


def read_arrays(
    path: str, choose: Callable[[list[str]], Sequence[str]], named: tuple[str, str]
) -> dict[str, _Array]:
    """Numeric arrays of a .npz file; pickled ones are never read.

    Args:
        path: the file; see :func:`fedleak.data.images.find_data_path`.
        choose: the names of the arrays to read, given those in the file.
        named: what the arrays are expected to be called, for messages.

    Returns:
        The arrays by name.

    Raises:
        BadInput: if the file is missing, damaged or pickled, or unpacks to more than
            ``updates.files.LARGEST`` bytes.
    """
    file = find_data_path(path)
    if not file.is_file():
        raise BadInput(
            f"Expected `path` to be a .npz file, found no file `{file}`; "
            f"set `--data.path` to a file with the arrays `{named[0]}` and `{named[1]}`."
        )
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is not a zip archive as np.savez writes it")
        with np.load(file, allow_pickle=False) as archive:
            keys = choose(archive.files)
            _check_sizes(path, file, keys, named[0])
            # Arrays are decompressed on access, so damage is detected here.
            return {key: archive[key] for key in keys}
    except BadInput:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise many classes for damaged files
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise BadInput(
            f"Expected `path` to be an intact .npz file without pickled objects, could not "
            f"read `{file}` ({reason:.200}); save numeric arrays with numpy.savez."
        ) from error


def _check_sizes(given: str, path: Path, keys: Sequence[str], what: str) -> None:
    """Check the arrays' sizes in their headers: a small archive may unpack to any size."""
    total = 0
    with zipfile.ZipFile(path) as archive:
        for key in keys:
            # np.load gives the names without the extension.
            name = key if key in archive.NameToInfo else f"{key}.npy"
            with archive.open(name) as file:
                version = npy.read_magic(file)
                if version not in _HEADERS:
                    raise ValueError(f"`{key}` is of the unknown version {version}")
                shape, _, dtype = _HEADERS[version](file)
            if min(shape, default=0) < 0:
                raise ValueError(f"`{key}` has the shape {shape}")
            total += math.prod(shape) * dtype.itemsize
    require(
        total <= LARGEST,
        f"Expected arrays of at most {LARGEST:,} bytes together in `{given}`, got "
        f"{total:,}: save fewer or smaller {what}.",
    )
