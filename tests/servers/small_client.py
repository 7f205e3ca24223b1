"""A small convolutional network, its client and what a malicious server gets from it."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.servers.base import Crafted, MaliciousServer
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.update import InterceptedUpdate

SHAPE = (3, 8, 8)
SAMPLES = 64
Rounds = tuple[tuple[Crafted, InterceptedUpdate], ...]


class SmallNet(nn.Module):
    """Two convolutions with one pooling layer and three linear layers, with functional ReLU."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.fc1 = nn.Linear(32, 20)
        self.fc2 = nn.Linear(20, 12)
        self.fc3 = nn.Linear(12, classes)

    def features(self, images: Tensor) -> Tensor:
        maps = self.pool(functional.relu(self.conv1(images)))
        return self.pool(functional.relu(self.conv2(maps))).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        units = functional.relu(self.fc1(self.features(images)))
        return self.fc3(functional.relu(self.fc2(units)))


def images(number: int, seed: int) -> Tensor:
    """Smooth images: a gradient of random size and direction in each channel, in [-1, 1]."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 3, 3, 3, generator=draw) * 2 - 1
    return functional.interpolate(coarse, (8, 8), mode="bilinear", align_corners=True)


def net(seed: int = 0) -> SmallNet:
    torch.manual_seed(seed)
    return SmallNet()


def sgd(rate: float, **settings: float) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9, **settings)


def knowledge(model: nn.Module, samples: int = SAMPLES, **facts: object) -> Knowledge:
    """What the server knows of a client that trains one epoch in batches of 8."""
    settings = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9} | facts
    return Knowledge(
        model, SHAPE, 4, (0.5,) * 3, (0.5,) * 3, num_samples=samples, protocol="fedavg",
        local_training=LocalTraining(batch_size=8, epochs=1, **settings),
    )  # fmt: skip


def train(
    model: nn.Module,
    weights: dict[str, Tensor],
    data: tuple[Tensor, Tensor],
    optimizer: Callable[..., torch.optim.Optimizer],
    seed: int,
) -> dict[str, Tensor]:
    """One epoch of a client, in plain torch."""
    twin = copy.deepcopy(model)
    twin.load_state_dict(weights)
    steps = optimizer(twin.parameters())
    order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(seed))
    for batch in order.split(8):
        steps.zero_grad()
        functional.cross_entropy(twin(data[0][batch]), data[1][batch]).backward()
        steps.step()
    return {name: value.detach().clone() for name, value in twin.state_dict().items()}


def asked(
    server: MaliciousServer,
    facts: Knowledge,
    data: tuple[Tensor, Tensor],
    optimizer: Callable[..., torch.optim.Optimizer],
    rounds: int = 2,
    seed: int = 0,
) -> Rounds:
    """What was sent to a client and what came back."""
    found: Rounds = ()
    draw = torch.Generator().manual_seed(seed)
    for number in range(rounds):
        sent = server.craft(facts, public=images(600, 99), generator=draw, earlier=found)
        came = train(facts.model, sent.weights, data, optimizer, 10 * seed + number)
        update = InterceptedUpdate(number + 1, 0, "fedavg", len(data[0]), "net", sent.weights, came)
        found += ((sent, update),)
    return found


def data(seed: int = 1, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """A client's images and labels."""
    draw = torch.Generator().manual_seed(seed)
    return images(samples, seed), torch.randint(4, (samples,), generator=draw)
