"""The client that is attacked: the network and the training of Flower's PyTorch quickstart.

Both do what the documented quickstart does; no line of its code is in here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

MEAN = STD = (0.5, 0.5, 0.5)
IMAGES = 4000
"""Images of a client, as where ten clients share the 50,000 and keep a fifth for tests."""


class Net(nn.Module):
    """Two convolutions with one pooling layer and three linear layers, for CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 10)`` of images ``(N, 3, 32, 32)``."""
        maps = self.pool(functional.relu(self.conv1(images)))
        maps = self.pool(functional.relu(self.conv2(maps)))
        units = functional.relu(self.fc1(maps.view(-1, 400)))
        return self.fc3(functional.relu(self.fc2(units)))


@dataclass(frozen=True)
class Training:
    """How a client trains; the defaults are the quickstart's.

    Args:
        rate: learning rate.
        optimizer: makes the optimiser from parameters and rate.
        clip: norm to which the gradient of each batch is clipped. If None, it is not.
    """

    rate: float = 0.1
    optimizer: Callable[..., torch.optim.Optimizer] = lambda parameters, rate: torch.optim.SGD(
        parameters, lr=rate, momentum=0.9
    )
    clip: float | None = None


def train(
    net: nn.Module, images: Tensor, labels: Tensor, training: Training, *, seed: int
) -> dict[str, Tensor]:
    """Train one epoch in batches of 32, drawn anew, and return the weights.

    Args:
        net: has the received weights; changed.
        images: ``(N, 3, 32, 32)``, normalised.
        labels: ``(N,)``.
        training: how.
        seed: of the order of the batches.
    """
    optimizer = training.optimizer(net.parameters(), training.rate)
    draw = torch.Generator().manual_seed(seed)
    net.train()
    data = TensorDataset(images, labels)
    for batch, classes in DataLoader(data, batch_size=32, shuffle=True, generator=draw):
        optimizer.zero_grad()
        functional.cross_entropy(net(batch), classes).backward()
        if training.clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), training.clip)
        optimizer.step()
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def normalised(images: np.ndarray) -> Tensor:
    """Images uint8 ``(N, 32, 32, 3)`` as the client feeds them, ``(N, 3, 32, 32)``."""
    return (
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float().div(255).sub(0.5).div(0.5)
    )


def client_images(folder: Path, client: int) -> tuple[Tensor, Tensor]:
    """Images and labels of a client: 4,000 different ones of 5,438, each mirrored at even odds.

    Args:
        folder: has ``cifar10.npz``.
        client: number of the client, the seed of its draw; clients overlap.
    """
    with np.load(folder / "cifar10.npz") as arrays:
        images, labels = normalised(arrays["train_images"]), arrays["train_labels"]
    draw = torch.Generator().manual_seed(1000 + client)
    chosen = torch.randperm(len(images), generator=draw)[:IMAGES]
    mirrored = torch.rand(IMAGES, generator=draw) < 0.5
    own = images[chosen]
    own[mirrored] = own[mirrored].flip(-1)
    return own, torch.from_numpy(labels.astype(np.int64))[chosen]


def public_images(folder: Path) -> Tensor:
    """Public images of no client: CIFAR-10's test images and CIFAR-100's, 3,050 in all.

    Args:
        folder: has ``cifar10.npz`` and ``cifar100.npz``.
    """
    with np.load(folder / "cifar10.npz") as ten, np.load(folder / "cifar100.npz") as hundred:
        parts = [ten["test_images"], hundred["train_images"], hundred["test_images"]]
    return normalised(np.concatenate(parts))
