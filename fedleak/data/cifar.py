"""CIFAR-10 and CIFAR-100, read by torchvision."""

from typing import ClassVar

import torch
from torchvision import datasets

from fedleak.data.images import ImageData, ImageSet, find_data_path
from fedleak.errors import BadInput


class _CIFAR(ImageData):
    """Base class of CIFAR-10 and CIFAR-100.

    Args:
        root: the folder that contains torchvision's folder of the data set, or into which it is
            downloaded.
        download: whether to download the data set into ``root`` if it is missing.
        batch_size: images per batch in all loaders.
    """

    _source: ClassVar[type[datasets.CIFAR10]]
    _mean: ClassVar[tuple[float, float, float]]
    _std: ClassVar[tuple[float, float, float]]

    def __init__(self, *, root: str = "data", download: bool = False, batch_size: int = 64) -> None:
        super().__init__(batch_size=batch_size)
        self.root = root
        self.download = download

    def prepare_data(self) -> None:
        """Download the data set if ``download`` is set; Lightning calls this once per machine.

        Raises:
            BadInput: if the download fails.
        """
        if self.download:
            self._open(train=True)

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return the 50,000 training and the 10,000 test images.

        Raises:
            BadInput: if the set is not in ``root`` and cannot be downloaded.
        """
        return self._images(train=True), self._images(train=False)

    def _images(self, train: bool) -> ImageSet:
        source = self._open(train)
        self.class_names = source.classes
        images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
        labels = torch.tensor(source.targets, dtype=torch.int64)
        return ImageSet(images, labels, mean=self._mean, std=self._std)

    def _open(self, train: bool) -> datasets.CIFAR10:
        root = find_data_path(self.root)
        try:
            return self._source(root, train=train, download=self.download)
        except (OSError, RuntimeError) as error:
            title, folder = type(self).__name__, self._source.base_folder
            if self.download:
                raise BadInput(
                    f"Could not download {title} to the folder `{root}` ({error}); set "
                    f"`--data.root` to a folder that holds torchvision's {folder}."
                ) from error
            raise BadInput(
                f"Expected `root` to be a folder that holds torchvision's {folder}, found no "
                f"complete {title} in `{root.absolute()}`; pass `--data.download true` to download "
                "it, or set `--data.root` to the folder where it is."
            ) from error


class CIFAR10(_CIFAR):
    """CIFAR-10: 3x32x32, 10 classes, 50,000 training and 10,000 test images.

    The official files hold Python pickles; torchvision verifies the MD5 of each file before it
    reads it, so no other file is ever unpickled.

    Args:
        root: the folder that contains torchvision's ``cifar-10-batches-py``, or into which it is
            downloaded.
        download: whether to download the data set into ``root`` if it is missing.
        batch_size: images per batch in all loaders.
    """

    name = "cifar10"
    _source = datasets.CIFAR10
    _mean = (0.49146724, 0.48226175, 0.44677013)
    _std = (0.24703224, 0.24348514, 0.26158786)


class CIFAR100(_CIFAR):
    """CIFAR-100 with its fine labels: 3x32x32, 100 classes, 50,000 training, 10,000 test images.

    The official files hold Python pickles; torchvision verifies the MD5 of each file before it
    reads it, so no other file is ever unpickled.

    Args:
        root: the folder that contains torchvision's ``cifar-100-python``, or into which it is
            downloaded.
        download: whether to download the data set into ``root`` if it is missing.
        batch_size: images per batch in all loaders.
    """

    name = "cifar100"
    _source = datasets.CIFAR100
    _mean = (0.5070783, 0.48655024, 0.44091797)
    _std = (0.26733464, 0.25643906, 0.2761504)
