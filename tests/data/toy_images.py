"""Small image sets in memory, to share between tests."""

import torch
from torch import Tensor

from fedleak.data import ImageData, ImageSet

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def pixels(count: int = 6, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, 4, 5), generator=generator, dtype=torch.uint8)


def image_set(count: int = 6, labels: list[int] | None = None, channels: int = 3) -> ImageSet:
    classes = torch.tensor(labels if labels is not None else [i % 3 for i in range(count)])
    mean, std = MEAN[:channels], STD[:channels]
    return ImageSet(pixels(count, channels), classes.long(), mean=mean, std=std)


class Toy(ImageData):
    """A set that counts how often it is prepared and loaded."""

    name = "toy"

    def __init__(
        self,
        *,
        train: ImageSet | None = None,
        test: ImageSet | None = None,
        names: list[str] | None = None,
        batch_size: int = 4,
    ) -> None:
        super().__init__(batch_size=batch_size)
        self.sets = (
            image_set(10) if train is None else train,
            image_set(5) if test is None else test,
        )
        self.names = names
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare")

    def load(self) -> tuple[ImageSet, ImageSet]:
        self.calls.append("load")
        self.class_names = self.names
        return self.sets
