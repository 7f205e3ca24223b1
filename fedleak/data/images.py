"""Base classes of image data sets, and the normalisation of images.

A new image set is a subclass of :class:`ImageData` with a ``name`` and a ``load`` method.
"""

import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedleak.data.base import Indices, Kind, PrivateData, TrainSet
from fedleak.errors import BadInput

MAX_CLASSES = 100_000
"""The maximum number of classes: a model has an output for each number up to the largest label."""


def find_data_path(path: str) -> Path:
    """Resolve a user's path of a data set.

    Args:
        path: a path; ``~`` is expanded. A relative path that does not exist in the working
            directory is searched for in the folder that the environment variable FEDLEAK_DATA
            names.

    Returns:
        The path, which need not exist.
    """
    given, folder = Path(path).expanduser(), os.environ.get("FEDLEAK_DATA")
    if folder and not given.exists() and (Path(folder) / given).exists():
        return Path(folder) / given
    return given


def _per_channel(values: Sequence[float], name: str, images: Tensor) -> Tensor:
    """Return one value per channel as a tensor (C, 1, 1) that broadcasts over ``images``."""
    if not images.is_floating_point():
        raise BadInput(
            f"Expected `images` to be floating point, got {images.dtype}; "
            "divide uint8 pixels by 255 first."
        )
    if images.ndim < 3 or images.shape[-3] != len(values):
        raise BadInput(
            f"Expected `{name}` to hold one value for each channel of images (..., C, H, W), "
            f"got {len(values)} values for images of shape {tuple(images.shape)}."
        )
    return torch.tensor(values, dtype=images.dtype, device=images.device).view(-1, 1, 1)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise pixels in [0, 1] to zero mean and unit standard deviation.

    Args:
        images: floating point pixels in [0, 1], (..., C, H, W).
        mean: one value per channel.
        std: one positive value per channel.

    Returns:
        ``(images - mean) / std``, of the same shape.

    Raises:
        BadInput: if ``images`` are not floating point or have another number of channels.
    """
    return (images - _per_channel(mean, "mean", images)) / _per_channel(std, "std", images)


def denormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert normalised images to pixels; the inverse of :func:`normalise`, without clamping.

    Args:
        images: normalised floating point images, (..., C, H, W).
        mean: one value per channel.
        std: one positive value per channel.

    Returns:
        ``images * std + mean``, of the same shape; within [0, 1] if the images were.

    Raises:
        BadInput: if ``images`` are not floating point or have another number of channels.
    """
    return images * _per_channel(std, "std", images) + _per_channel(mean, "mean", images)


def valid_range(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Compute the normalised values of the pixel values 0 and 1.

    Args:
        mean: one value per channel.
        std: one positive value per channel.

    Returns:
        The lower and the upper bound, each float32 (C, 1, 1).

    Raises:
        BadInput: if ``mean`` and ``std`` differ in length.
    """
    black = torch.zeros(len(mean), 1, 1)
    return normalise(black, mean, std), normalise(black + 1, mean, std)


def channel_statistics(
    images: npt.NDArray[np.uint8] | npt.NDArray[np.float32],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation of the pixels of each channel, on the scale [0, 1].

    Args:
        images: (N, C, H, W), uint8 or float32 in [0, 1].

    Returns:
        Mean and standard deviation (over N, H and W), one value per channel.
    """
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    # One channel at a time, to keep numpy's float64 copy for the standard deviation small.
    channels = [images[:, c] for c in range(images.shape[1])]
    mean = tuple(float(np.mean(c, dtype=np.float64)) / scale for c in channels)
    std = tuple(float(np.std(c, dtype=np.float64)) / scale for c in channels)
    return mean, std


class ImageSet(TrainSet):
    """Labelled images in memory, normalised on access.

    Args:
        images: (N, C, H, W); uint8 pixels, or float32 in [0, 1], or float32 that is
            normalised already.
        labels: int64 (N,), classes counted from 0.
        mean: one value per channel, on the scale [0, 1].
        std: one positive value per channel, on the scale [0, 1].
        normalised: whether float32 ``images`` have been normalised with ``mean`` and ``std``.

    Raises:
        BadInput: if shapes, types or values are not as above.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        normalised: bool = False,
    ) -> None:
        self.images = images
        self.labels = labels
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.normalised = normalised
        self._validate()

    def _validate(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32):
            raise BadInput(
                "Expected `images` to be uint8 or float32 of shape (N, C, H, W), "
                f"got {images.dtype} of shape {tuple(images.shape)}."
            )
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise BadInput(
                "Expected `labels` to be int64 of shape (N,), "
                f"got {labels.dtype} of shape {tuple(labels.shape)}."
            )
        if len(images) != len(labels):
            raise BadInput(
                "Expected as many `labels` as `images`, "
                f"got {len(labels)} labels and {len(images)} images."
            )
        if len(labels) and int(labels.min()) < 0:
            raise BadInput(
                f"Expected `labels` to count classes from 0, got the label {int(labels.min())}."
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != images.shape[1] or not np.isfinite(values).all():
                raise BadInput(
                    f"Expected `{name}` to hold one finite value for each of the "
                    f"{images.shape[1]} channels, got {list(values)}."
                )
        if min(self.std, default=1.0) <= 0:
            raise BadInput(f"Expected `std` to hold positive values, got {list(self.std)}.")
        self._validate_values()

    def _validate_values(self) -> None:
        images = self.images
        if images.dtype == torch.uint8:
            if self.normalised:
                raise BadInput(
                    "Expected `normalised` images to be float32, got uint8; "
                    "set `normalised` to false for pixels."
                )
            return
        if not images.numel():
            return
        low, high = float(images.min()), float(images.max())
        if self.normalised:
            if not np.isfinite([low, high]).all():
                raise BadInput(
                    "Expected `images` to be finite, got NaN or infinity; "
                    "remove those images from the data."
                )
        elif not (low >= 0 and high <= 1):  # written so that NaN fails as well
            raise BadInput(
                f"Expected float `images` to lie within [0, 1], got [{low:.4g}, {high:.4g}]; "
                "divide them by the largest pixel value, or set `normalised` to true if they are "
                "normalised."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one normalised image, float32 (C, H, W), and its label, int64 ()."""
        return self._normalised(self.images[index]), self.labels[index]

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Return several samples at once; see :meth:`TrainSet.batch`.

        Returns:
            Normalised images, float32 (B, C, H, W), and labels, int64 (B,).
        """
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self._normalised(self.images[chosen]), self.labels[chosen]

    def _normalised(self, images: Tensor) -> Tensor:
        if self.normalised:
            return images
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return normalise(images, self.mean, self.std)


class ImageData(PrivateData):
    """A training and a test set of images of one shape; the base of all image sets.

    A subclass sets ``name`` and implements :meth:`load`, and may override ``prepare_data`` for
    work that is done once per machine, such as a download. Properties prepare and load the data on
    first access.

    Args:
        batch_size: see :class:`PrivateData`.

    Attributes:
        class_names: names of the classes; ``load`` sets it where they are known.

    Raises:
        BadInput: if ``batch_size`` is less than 1.
    """

    kind: ClassVar[Kind] = "images"

    def __init__(self, *, batch_size: int = 64) -> None:
        super().__init__(batch_size=batch_size)
        self.class_names: Sequence[str] | None = None
        self._sets: tuple[ImageSet, ImageSet] | None = None

    @abstractmethod
    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return the training and the test set; called once.

        Raises:
            BadInput: if the data is missing or not usable.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load and check both sets; only the first call has an effect.

        Args:
            stage: Lightning's stage; all stages use the same two sets.

        Raises:
            BadInput: if the data is missing or not usable.
        """
        if self._sets is None:
            train, test = self.load()
            self._check(train, test)
            self._sets = train, test

    def _check(self, train: ImageSet, test: ImageSet) -> None:
        if not len(train) or not len(test):
            raise BadInput(
                "Expected at least one training and one test image, "
                f"got {len(train)} and {len(test)} in `{self.name}`."
            )
        train_shape, test_shape = tuple(train.images.shape[1:]), tuple(test.images.shape[1:])
        if train_shape != test_shape:
            raise BadInput(
                "Expected training and test images of one shape, "
                f"got {train_shape} and {test_shape} in `{self.name}`."
            )
        if (train.mean, train.std) != (test.mean, test.std):
            raise BadInput(
                "Expected one `mean` and `std` for training and test images, "
                f"got {train.mean}, {train.std} and {test.mean}, {test.std} in `{self.name}`."
            )
        largest = max(int(train.labels.max()), int(test.labels.max()))
        if largest >= MAX_CLASSES:
            raise BadInput(
                f"Expected labels below {MAX_CLASSES:,}, got the label {largest:,} in "
                f"`{self.name}`; number the classes from 0 without gaps."
            )
        if self.class_names is not None and largest >= len(self.class_names):
            raise BadInput(
                f"Expected labels below {len(self.class_names)}, the number of classes, "
                f"got the label {largest} in `{self.name}`."
            )

    def _loaded(self) -> tuple[ImageSet, ImageSet]:
        if self._sets is None:
            self.prepare_data()
            self.setup()
        assert self._sets is not None  # setup has set it
        return self._sets

    @property
    def train_set(self) -> ImageSet:
        """The training images, which are partitioned over the clients."""
        return self._loaded()[0]

    @property
    def test_set(self) -> ImageSet:
        """The test images, which no client trains on."""
        return self._loaded()[1]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train_set.images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> list[str]:
        """Names of the classes, or their numbers as text where no names are known."""
        train, test = self._loaded()
        if self.class_names is not None:
            return list(self.class_names)
        return [str(i) for i in range(max(int(train.labels.max()), int(test.labels.max())) + 1)]

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of the pixels of each channel, on the scale [0, 1]."""
        return self.train_set.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of the pixels of each channel, on the scale [0, 1]."""
        return self.train_set.std
