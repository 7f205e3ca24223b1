"""The updates that the benchmarks attack: clients of one sample each, on one untrained model."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.nn.functional import interpolate

from fedleak.data import ImageData, Npz, Photos
from fedleak.models import ImageClassifier, Precode
from fedleak.updates.knowledge import Knowledge, batch_loss
from fedleak.updates.update import InterceptedUpdate

VICTIMS_FILE = "victims_cifar10.npz"
VICTIMS_MEAN = [0.49146724, 0.48226175, 0.44677013]
VICTIMS_STD = [0.24703224, 0.24348514, 0.26158786]
LARGE_FILE = "victims_medical_mnist.npz"
LARGE_MEAN, LARGE_STD = [0.35834864], [0.2821981]


def published_victims() -> tuple[ImageData, str]:
    """The victims of the PRECODE paper where FEDLEAK_DATA has them, or else the photographs.

    Returns:
        The data, and their name in a setting.
    """
    data = _of_the_papers(VICTIMS_FILE, VICTIMS_MEAN, VICTIMS_STD)
    if data is not None:
        return data, f"{VICTIMS_FILE} (CIFAR-10, 3x32x32)"
    return Photos(), "photos 3x32x32"


def large_victims() -> tuple[ImageData, str]:
    """Grey images of 64x64: the papers' of Medical MNIST, or else photographs, enlarged.

    Returns:
        The data, and their name in a setting.
    """
    data = _of_the_papers(LARGE_FILE, LARGE_MEAN, LARGE_STD)
    if data is not None:
        return data, f"{LARGE_FILE} (Medical MNIST, 1x64x64)"
    photos = Photos()
    images, labels = photos.train_set.batch(range(0, len(photos.train_set), 97))
    scale = torch.tensor([photos.mean, photos.std]).reshape(2, 1, 3, 1, 1)
    grey = (images * scale[1] + scale[0]).mean(dim=1, keepdim=True)
    large = interpolate(grey, scale_factor=2, mode="bilinear").mul(255).round().byte()
    with TemporaryDirectory() as name:
        path = Path(name) / "large.npz"
        np.savez(path, images=large.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
        data = Npz(path=str(path), test_fraction=0)
        data.setup()  # while the file is there
    return data, "photos, grey and enlarged to 1x64x64"


def _of_the_papers(file: str, mean: list[float], std: list[float]) -> Npz | None:
    """The papers' victims from a file; None if FEDLEAK_DATA names no folder with that file."""
    path = Path(os.environ.get("FEDLEAK_DATA", "")) / file
    if "FEDLEAK_DATA" not in os.environ or not path.is_file():
        return None
    return Npz(path=str(path), normalised=True, mean=mean, std=std, test_fraction=0)


def make_victims(
    kind: Callable[..., ImageClassifier],
    count: int,
    data: ImageData | None = None,
    *,
    precode: Precode | None = None,
) -> tuple[list[InterceptedUpdate], list[Knowledge], list[torch.Tensor]]:
    """Clients of one sample each, with one untrained model; labels known.

    Args:
        kind: makes the model, such as its class; PyTorch's default initialisation from seed 0.
        count: number of clients.
        data: where their samples come from. If None, the photographs.
        precode: the model's bottleneck. If None, the model has none.

    Returns:
        For every client its update (a gradient), what the server knows, and the truth
        ``(1, C, H, W)``, normalised.
    """
    data = data or Photos()
    torch.manual_seed(0)
    model = kind(input_shape=data.input_shape, num_classes=data.num_classes, precode=precode)
    updates, knowledge, truths = [], [], []
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    for index in range(count):
        # A stride that is prime goes through all classes of data that are sorted by class.
        images, labels = data.train_set.batch([index * 97 % len(data.train_set)])
        loss = batch_loss(model, (images, labels))
        gradient = torch.autograd.grad(loss, tuple(model.parameters()))
        names = [name for name, _ in model.named_parameters()]
        received = dict(zip(names, gradient, strict=True))
        updates.append(InterceptedUpdate(1, index, "fedsgd", 1, "bench", sent, received))
        knowledge.append(
            Knowledge(
                model=model, input_shape=data.input_shape, num_classes=data.num_classes,
                mean=data.mean, std=data.std, labels=labels,
            )
        )  # fmt: skip
        truths.append(images)
    return updates, knowledge, truths
