"""Images that are not known: of an imported update, only shape, classes and scaling are."""

from collections.abc import Sequence

import torch

from fedleak.data.images import ImageData, ImageSet
from fedleak.errors import require


class Unseen(ImageData):
    """Stands for data that nobody has: black images of the shape of those behind an update.

    Args:
        shape: shape of an image, ``(C, H, W)``.
        classes: number of classes, at least 1.
        samples: number of images, at least 1.
        mean: what was subtracted from each channel, on the scale [0, 1]; one value for all or one
            for each.
        std: by what each channel was divided afterwards; one positive value for all or one for
            each.
        batch_size: images per batch in all loaders.

    Raises:
        BadInput: if a value is out of its range.
    """

    name = "unseen"

    def __init__(
        self,
        *,
        shape: list[int],
        classes: int,
        samples: int = 1,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        batch_size: int = 64,
    ) -> None:
        super().__init__(batch_size=batch_size)
        require(
            len(shape) == 3 and min(shape) >= 1,
            f"Expected `shape` to be three sizes of at least 1, (C, H, W), got {tuple(shape)}.",
        )
        require(classes >= 1, f"Expected `classes` to be at least 1, got {classes}.")
        require(samples >= 1, f"Expected `samples` to be at least 1, got {samples}.")
        self._shape, self._classes, self._samples = tuple(shape), classes, samples
        self._scale = [
            tuple(values) * shape[0] if len(values) == 1 else tuple(values)
            for values in (mean, std)
        ]

    @property
    def num_classes(self) -> int:
        """The number of classes that was told."""
        return self._classes

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return black images, which are nobody's.

        Raises:
            BadInput: if ``mean`` and ``std`` do not fit the channels.
        """
        mean, std = self._scale
        # One image, seen many times: as many as memory holds are never needed.
        images = torch.zeros(1, *self._shape, dtype=torch.uint8).expand(self._samples, -1, -1, -1)
        labels = torch.zeros(self._samples, dtype=torch.int64)
        found = ImageSet(images, labels, mean=mean, std=std)
        return found, found
