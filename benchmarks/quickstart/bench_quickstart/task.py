"""The network and its training: an epoch of SGD with momentum on made-up images."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """Two convolutions with max pooling and three linear layers, for images ``(N, 3, 32, 32)``."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 10)``."""
        logits: Tensor = self.head(self.features(images))
        return logits


def train(model: nn.Module, client: int, images: int) -> int:
    """Train one epoch on a client's images, in batches of 32.

    Args:
        model: the network.
        client: number of the client, the seed of its images.
        images: number of its images.

    Returns:
        The number of images.
    """
    generator = torch.Generator().manual_seed(client)
    data = TensorDataset(
        torch.rand(images, 3, 32, 32, generator=generator),
        torch.randint(10, (images,), generator=generator),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()
    for inputs, labels in DataLoader(data, batch_size=32, shuffle=True, generator=generator):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return images
