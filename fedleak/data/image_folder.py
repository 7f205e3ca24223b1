"""Images in one folder per class, in the layout of torchvision's ImageFolder."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.datasets import ImageFolder as TorchImageFolder

from fedleak.data.images import ImageData, ImageSet, channel_statistics, find_data_path
from fedleak.data.picture_files import open_image
from fedleak.errors import BadInput, require
from fedleak.updates.files import LARGEST

_Images = npt.NDArray[np.uint8]


class ImageFolder(ImageData):
    """Images from ``root/CLASS/*``, or from ``root/train/CLASS/*`` and ``root/test/CLASS/*``.

    Without train and test folders, a share of the images is held out as the test set, chosen by the
    hash of their bytes: the choice is deterministic, and byte duplicates are in the same split.

    Args:
        root: the folder; see :func:`fedleak.data.images.find_data_path`.
        size: side in pixels to which images are scaled, 1 to 8192. If None, all images must have
            one size.
        grey: whether to read one channel instead of three.
        test_fraction: share of the images that is held out, above 0 and below 1.
        mean: mean of each channel on the scale [0, 1]. If None, computed from the training images.
        std: standard deviation of each channel on the scale [0, 1]. If None, computed from the
            training images.
        class_names: the class folders in the order of their labels, for weights or victims with
            another numbering. If None, the order is alphabetical, as in torchvision.
        batch_size: images per batch in all loaders.

    Raises:
        BadInput: if a value is out of its range, or only one of ``mean`` and ``std`` is given.
    """

    name = "image_folder"

    def __init__(
        self,
        *,
        root: str,
        size: int | None = None,
        grey: bool = False,
        test_fraction: float = 0.1,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        class_names: list[str] | None = None,
        batch_size: int = 64,
    ) -> None:
        super().__init__(batch_size=batch_size)
        require(
            0 < test_fraction < 1,
            f"Expected `test_fraction` to be above 0 and below 1, got {test_fraction}.",
        )
        require(
            size is None or 1 <= size <= 8192,
            f"Expected `size` to be from 1 to 8192, got {size}.",
        )
        require(
            (mean is None) == (std is None),
            "Expected both `mean` and `std` or neither, got one of them.",
        )
        self.root = root
        self.size = size
        self.grey = grey
        self.test_fraction = test_fraction
        self._given = None if mean is None or std is None else (tuple(mean), tuple(std))
        self._order = class_names

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Read all images.

        Raises:
            BadInput: if the folder is missing, has no classes or other classes than
                ``class_names``, or contains unreadable images, images of several sizes although
                ``size`` is not set, or more than ``updates.files.LARGEST`` bytes of images.
        """
        root = find_data_path(self.root)
        require(root.is_dir(), f"Expected a folder of images at `root`, found none: {root}.")
        if (root / "train").is_dir() and (root / "test").is_dir():
            test = self._files(root / "test")
            held_out = self.class_names
            train = self._files(root / "train")
            require(
                held_out == self.class_names,
                f"Expected the same classes in {root / 'train'} and {root / 'test'}, got "
                f"{self.class_names} and {held_out}.",
            )
        else:
            train, test = [], []
            for path, label in self._files(root):
                part = test if _is_held_out(path, self.test_fraction) else train
                part.append((path, label))
        require(
            bool(train) and bool(test),
            f"Expected images for training and for test in {root}, got {len(train)} and "
            f"{len(test)}: change `test_fraction`.",
        )
        pixels = self._read(train)
        mean, std = self._given or channel_statistics(pixels)
        sets = []
        for images, files in ((pixels, train), (self._read(test), test)):
            labels = torch.tensor([label for _, label in files])
            sets.append(ImageSet(torch.from_numpy(images), labels, mean=mean, std=std))
        return sets[0], sets[1]

    def _files(self, root: Path) -> list[tuple[Path, int]]:
        try:
            found = TorchImageFolder(str(root))
        except FileNotFoundError as error:
            raise BadInput(
                f"Expected a folder of images for each class in {root}: {error}"
            ) from error
        self.class_names = names = found.classes if self._order is None else self._order
        require(
            sorted(names) == found.classes,
            f"Expected `class_names` to be the class folders of {root} in any order, "
            f"{found.classes}, got {names}.",
        )
        return [(Path(path), names.index(found.classes[label])) for path, label in found.samples]

    def _read(self, files: list[tuple[Path, int]]) -> _Images:
        images: list[_Images] = []
        for path, _ in files:
            image = self._image(path)
            require(
                not images or image.shape == images[0].shape,
                f"Expected images of one size in {self.root}, got {_size(image)} in {path} and "
                f"another one before: set `size`.",
            )
            require(
                len(files) * image.nbytes <= LARGEST,
                f"Expected images of at most {LARGEST:,} bytes together in {self.root}, got "
                f"{len(files):,} of {_size(image)}: set a smaller `size`, or leave some out.",
            )
            images.append(image)
        return np.stack(images)

    def _image(self, path: Path) -> _Images:
        with open_image(path) as file:
            image = file.convert("L" if self.grey else "RGB")
        if self.size is not None:
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels: _Images = np.asarray(image, dtype=np.uint8)
        return pixels[None] if self.grey else pixels.transpose(2, 0, 1)


def _size(image: _Images) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"


class MedicalMNIST(ImageFolder):
    """Medical MNIST: 1x64x64, 6 classes (58,954 images of CT, MR, X-ray), from a folder for each.

    Get it as apolanco3225/Medical-MNIST-Classification on GitHub, or as "Medical MNIST" on Kaggle,
    and unpack it; images are scaled with the PRECODE paper's constants.

    Args:
        root: the folder that contains AbdomenCT, BreastMRI, CXR, ChestCT, Hand and HeadCT.
        test_fraction: share of the images that is held out, above 0 and below 1.
        class_names: see :class:`ImageFolder`.
        batch_size: images per batch in all loaders.
    """

    name = "medical_mnist"

    def __init__(
        self,
        *,
        root: str = "medical_mnist",
        test_fraction: float = 0.1,
        class_names: list[str] | None = None,
        batch_size: int = 64,
    ) -> None:
        super().__init__(
            root=root,
            size=64,
            grey=True,
            test_fraction=test_fraction,
            mean=[0.35834864],
            std=[0.2821981],
            class_names=class_names,
            batch_size=batch_size,
        )

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Read all images; see :meth:`ImageFolder.load`.

        Raises:
            BadInput: if the folder is missing (the message says where to get it) or unusable.
        """
        require(
            find_data_path(self.root).is_dir(),
            f"Expected Medical MNIST at `root`, found no folder {self.root}: get it from GitHub "
            "(apolanco3225/Medical-MNIST-Classification), unpack it and set `--data.root`.",
        )
        return super().load()


def _is_held_out(path: Path, share: float) -> bool:
    """Whether an image belongs to the held-out share, determined by the hash of its bytes."""
    digest = hashlib.sha256(path.read_bytes()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
