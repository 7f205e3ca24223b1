"""More honest models, of other architectures and data: the guard's limits were set without them."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from honest_models import Training, medical_images, mlp, shuffled, whole_data
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional

from fedleak.data import Photos

ARTISTS = 1000
"""Artists of Last.fm that are kept, those with the most listeners."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Fire(nn.Module):
    """A block of SqueezeNet: a narrow 1x1 convolution, then 1x1 and 3x3 ones side by side."""

    def __init__(self, incoming: int, narrow: int, wide: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(incoming, narrow, 1)
        self.one, self.three = nn.Conv2d(narrow, wide, 1), nn.Conv2d(narrow, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of twice the wide number of channels."""
        x = functional.relu(self.narrow(x))
        return torch.cat([functional.relu(self.one(x)), functional.relu(self.three(x))], 1)


class Dense(nn.Module):
    """A block of DenseNet: each convolution sees the outputs of all before it."""

    def __init__(self, incoming: int, growth: int = 8, depth: int = 3) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(incoming + at * growth), nn.ReLU(),
                nn.Conv2d(incoming + at * growth, growth, 3, padding=1, bias=False),
            )
            for at in range(depth)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """The input and all outputs, one after the other."""
        for part in self.parts:
            x = torch.cat([x, part(x)], 1)
        return x


class Sum(nn.Module):
    """A body whose output is added to its input."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        return x + self.body(x)


class Turned(nn.Module):
    """A module applied along the tokens instead of the channels."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, channels)``, as the input."""
        return self.body(x.transpose(1, 2)).transpose(1, 2)


class Mixer(nn.Module):
    """MLP-Mixer with patches of 4x4: perceptrons along tokens and along channels."""

    def __init__(self, classes: int, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(*(
            part for _ in range(depth) for part in (
                Sum(nn.LayerNorm(width), Turned(_hidden(64, 32))),
                Sum(nn.LayerNorm(width), _hidden(width, 96)),
            )
        ))  # fmt: skip
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images ``(batch, 3, 32, 32)``."""
        return self.head(self.blocks(self.patches(images).flatten(2).transpose(1, 2)).mean(1))


class UNet(nn.Module):
    """Two levels down and up, with the maps of the way down beside those of the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 24, 3, 2, 1)
        self.up = nn.ConvTranspose2d(24, 12, 4, 2, 1)
        self.last = nn.ConvTranspose2d(24, 3, 4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(batch, 3, H, W)``."""
        high = functional.relu(self.first(images))
        low = functional.relu(self.second(high))
        return self.last(torch.cat([high, functional.relu(self.up(low))], 1))


class Text(nn.Module):
    """The next character of a text, by a body over embeddings ``(batch, channels, length)``."""

    def __init__(self, body: nn.Module, width: int = 48) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(128, width), body
        self.head = nn.LazyLinear(128)
        self(torch.zeros(1, 32, dtype=torch.long))

    def forward(self, text: Tensor) -> Tensor:
        """Logits ``(batch, 128)`` of characters ``(batch, 32)``."""
        return self.head(self.body(self.embedding(text).transpose(1, 2)).flatten(1))


class Encoder(nn.Module):
    """A transformer's encoder, in batches of ``(channels, length)``."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 96, 0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """The mean over the tokens, ``(batch, channels)``."""
        return self.encoder(tokens.transpose(1, 2)).mean(1)


class Rows(nn.Module):
    """A GRU over the rows of an image."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.gru = nn.GRU(96, 64, batch_first=True)
        self.hidden, self.head = nn.Linear(64, 64), nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images ``(batch, 3, 32, 32)``."""
        last = self.gru(images.transpose(1, 2).flatten(2))[0][:, -1]
        return self.head(functional.relu(self.hidden(last)))


def _hidden(width: int, inner: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


def squeeze() -> nn.Module:
    """SqueezeNet for small images."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), Fire(24, 8, 16), nn.MaxPool2d(2), Fire(32, 8, 24),
        nn.Dropout(), nn.Conv2d(48, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def dense() -> nn.Module:
    """Two dense blocks."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), Dense(12), nn.Conv2d(36, 18, 1), nn.AvgPool2d(2), Dense(18),
        nn.BatchNorm2d(42), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(168, 8),
    )  # fmt: skip


def residual_perceptron() -> nn.Module:
    """A perceptron of three residual blocks behind a linear layer."""
    blocks = (Sum(nn.LayerNorm(128), _hidden(128, 256)) for _ in range(3))
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 128), *blocks, nn.Linear(128, 10))


def alexnet() -> nn.Module:
    """Convolutions, pooling and two wide linear layers with dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, 1, 1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(512, 256), nn.ReLU(),
        nn.Dropout(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def lenet5() -> nn.Module:
    """LeNet-5 with tanh and mean pooling, for 64x64 grey images."""
    return nn.Sequential(
        nn.AvgPool2d(2), nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5),
        nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.Tanh(),
        nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 6),
    )  # fmt: skip


def instance_norm() -> nn.Module:
    """Convolutions with instance norm and a hidden linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.InstanceNorm2d(16, affine=True), nn.SiLU(),
        nn.Conv2d(16, 24, 3, 2, 1), nn.InstanceNorm2d(24, affine=True), nn.SiLU(),
        nn.Flatten(), nn.Linear(1536, 64), nn.SiLU(), nn.Linear(64, 8),
    )  # fmt: skip


def wave_convolutions() -> nn.Module:
    """Convolutions with batch norm over a series."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 250)), nn.Conv1d(1, 16, 9, 2), nn.BatchNorm1d(16), nn.ReLU(),
        nn.Conv1d(16, 24, 9, 4), nn.BatchNorm1d(24), nn.ReLU(), nn.Flatten(),
        nn.Linear(696, 100), nn.ReLU(), nn.Linear(100, 5),
    )  # fmt: skip


def text_convolutions() -> nn.Module:
    """Convolutions over characters, the largest value over the text."""
    return Text(nn.Sequential(nn.Conv1d(48, 64, 3), nn.ReLU(), nn.AdaptiveMaxPool1d(1)))


@cache
def fresh_data(name: str) -> tuple[Tensor, Tensor]:
    """All inputs and targets of a data set, in random order.

    Args:
        name: ``cifar100 imagenet`` (with ImageNet's mean and deviation), ``cifar10 255`` (pixels
            from 0 to 255), ``photos``, ``photos self``, ``medical 64`` (64x64, with its own mean
            and deviation), ``counts`` (of the characters in a text), ``text``, ``diabetes``,
            ``artists`` (who listens to whom, itself the target) or ``waves`` (made up: series of
            two frequencies and noise; the class is the first one).
    """
    if name == "text":
        return whole_data(name)
    if name == "cifar100 imagenet":
        images, labels = whole_data("cifar100")
        mean, std = (torch.tensor(value).reshape(3, 1, 1) for value in IMAGENET)
        return ((images + 1) / 2 - mean) / std, labels
    if name == "cifar10 255":
        images, labels = whole_data("cifar10 raw")
        return 255 * images, labels
    if name.startswith("photos"):
        train, _ = Photos().load()
        mean, std = (torch.tensor(value).reshape(3, 1, 1) for value in (train.mean, train.std))
        images = (torch.as_tensor(train.images).float() / 255 - mean) / std
        labels = torch.as_tensor(train.labels).long()
        return shuffled(images, images if name.endswith("self") else labels)
    if name == "medical 64":
        images, labels = medical_images(64)
        return shuffled((images - images.mean()) / images.std(), labels)
    if name == "counts":
        text, following = whole_data("text")
        return functional.one_hot(text, 128).sum(1).float(), following
    if name == "diabetes":
        found = datasets.load_diabetes(scaled=False)
        inputs, target = (torch.tensor(v).float() for v in (found.data, found.target[:, None]))
        inputs, target = ((v - v.mean(0)) / v.std(0) for v in (inputs, target))
        return shuffled(inputs, target)
    if name == "artists":
        rows = np.loadtxt(Path(os.environ["FEDLEAK_DATA"]) / "lastfm_user_artists.dat", skiprows=1)
        users, artists = rows[:, 0].astype(int), rows[:, 1].astype(int)
        most = np.argsort(-np.bincount(artists), kind="stable")[:ARTISTS]
        table = torch.zeros(users.max() + 1, artists.max() + 1)
        table[users, artists] = 1
        table = table[:, most]
        return shuffled(*[table[table.any(1)]] * 2)
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (1000,), generator=draw)
    time = torch.linspace(0, 1, 250)
    other, phase = torch.rand(2, 1000, 1, generator=draw)
    waves = torch.sin(6.28 * ((3 + 4 * labels[:, None]) * time + phase))
    waves += 0.5 * torch.sin(6.28 * 30 * other * time)
    return waves + 0.3 * torch.randn(1000, 250, generator=draw), labels


def fresh(
    name: str, make: Callable[[], nn.Module], data: str, *settings: object, **more: object
) -> Training:
    """A training of one of the data sets above."""
    return Training(name, make, data, True, *settings, load=fresh_data, **more)


PLAIN, GREY = "cifar100 imagenet", "medical 64"
ADAM = ("adam", 1e-3)
FRESH = (
    fresh("squeeze", squeeze, PLAIN, rate=0.05),
    fresh("dense", dense, "photos", *ADAM, seed=1),
    fresh("mixer", lambda: Mixer(10), PLAIN, *ADAM, seed=2),
    fresh("u-net", UNet, "photos self", *ADAM, seed=3),
    fresh("residual mlp", residual_perceptron, PLAIN, *ADAM, seed=4),
    fresh("selu mlp", lambda: mlp(4096, 6, 300, 100, act=nn.SELU), GREY, seed=5),
    fresh("sigmoid mlp", lambda: mlp(4096, 6, 250, act=nn.Sigmoid), GREY, *ADAM, seed=6),
    fresh("artists", lambda: mlp(1000, 1000, 200), "artists", *ADAM, seed=7),
    fresh("artists tanh", lambda: mlp(1000, 1000, 400, act=nn.Tanh), "artists", rate=0.1, seed=8),
    fresh("counts", lambda: mlp(128, 128, 300, 100), "counts", "adam", 1e-2, seed=9),
    fresh("diabetes", lambda: mlp(10, 1, 64, 64), "diabetes", "adam", 1e-2, seed=10),
    fresh("diabetes wide", lambda: mlp(10, 1, 1000), "diabetes", seed=11),
    fresh("text convolutions", text_convolutions, "text", *ADAM, seed=12),
    fresh("text transformer", lambda: Text(Encoder()), "text", *ADAM, seed=13),
    fresh("alexnet", alexnet, "cifar10 255", "adam", 1e-4, seed=14),
    fresh("mlp 255", lambda: mlp(3072, 10, 300), "cifar10 255", "adam", 1e-4, seed=15),
    fresh("lenet-5", lenet5, GREY, rate=0.05, seed=16),
    fresh("gru rows", lambda: Rows(10), PLAIN, *ADAM, seed=17),
    fresh("instance norm", instance_norm, "photos", rate=0.02, seed=18),
    fresh("wave convolutions", wave_convolutions, "waves", *ADAM, seed=19),
    fresh("waves elu", lambda: mlp(250, 5, 400, 400, act=nn.ELU), "waves", rate=0.05, seed=20),
    fresh("wide mlp 64", lambda: mlp(4096, 6, 1024), GREY, "adam", 3e-3, seed=21),
    fresh("mlp decay", lambda: mlp(3072, 10, 256), PLAIN, decay=1e-2, init="kaiming", seed=22),
    fresh("mlp photos", lambda: mlp(3072, 8, 500, 100), "photos", "adam", 3e-3, seed=23),
)
