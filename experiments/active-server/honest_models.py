"""Honest models of many architectures, untrained and trained, on which the guard must be silent."""

import io
import os
import pydoc_data.topics
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional

OWN = 256
"""Samples with which a client looks at a model."""
CHECKPOINTS = (0, 1, 5, 20)
"""Epochs after which a training is looked at."""


class QuickstartNet(nn.Module):
    """The network of Flower's PyTorch quickstart, as documented there."""

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(400, 120), nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(batch, 10)`` of images ``(batch, 3, 32, 32)``."""
        hidden = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        hidden = functional.max_pool2d(functional.relu(self.conv2(hidden)), 2).flatten(1)
        hidden = functional.relu(self.fc2(functional.relu(self.fc1(hidden))))
        return self.fc3(hidden)


class Residual(nn.Module):
    """A basic block of a residual network."""

    def __init__(self, incoming: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(incoming, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])
        same = incoming == width and stride == 1
        self.short = nn.Identity() if same else nn.Conv2d(incoming, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Two convolutions and the input."""
        hidden = functional.relu(self.norms[0](self.first(x)), inplace=True)
        return functional.relu(self.norms[1](self.second(hidden)) + self.short(x), inplace=True)


class Inverted(nn.Module):
    """An inverted residual block with a depthwise convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width), nn.ReLU6(),
            nn.Conv2d(4 * width, 4 * width, 3, 1, 1, groups=4 * width, bias=False),
            nn.BatchNorm2d(4 * width), nn.ReLU6(),
            nn.Conv2d(4 * width, width, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """The block and its input."""
        return x + self.body(x)


class Transformer(nn.Module):
    """A vision transformer: patches, encoder, mean, linear."""

    def __init__(self, channels: int, classes: int, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images ``(batch, C, 32, 32)``."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.position
        return self.head(self.encoder(tokens).mean(1))


class Characters(nn.Module):
    """The next character of a text, by an LSTM or the mean of embeddings."""

    def __init__(self, recurrent: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 64)
        self.lstm = nn.LSTM(64, 128, batch_first=True) if recurrent else None
        self.hidden = nn.Linear(128 if recurrent else 64, 256)
        self.head = nn.Linear(256, 128)

    def forward(self, text: Tensor) -> Tensor:
        """Logits ``(batch, 128)`` of characters ``(batch, length)``."""
        found = self.embedding(text)
        found = self.lstm(found)[0][:, -1] if self.lstm is not None else found.mean(1)
        return self.head(functional.relu(self.hidden(found)))


def mlp(
    incoming: int, classes: int, *widths: int, act: Callable[[], nn.Module] = nn.ReLU
) -> nn.Module:
    """A perceptron with the given hidden widths."""
    sizes, parts = (incoming, *widths), [nn.Flatten()]
    for one, other in zip(sizes, widths, strict=False):
        parts += [nn.Linear(one, other), act()]
    return nn.Sequential(*parts, nn.Linear(sizes[-1], classes))


def vgg(channels: int, classes: int, norm: bool = True) -> nn.Module:
    """Six convolutions and two linear layers, with batch norm or without."""
    parts: list[nn.Module] = []
    for width in (32, 32, 64, 64, 128, 128):
        pool = channels == width
        parts.append(nn.Conv2d(channels, width, 3, padding=1))
        parts += [nn.BatchNorm2d(width)] if norm else []
        parts += [nn.ReLU(inplace=True)] + ([nn.MaxPool2d(2)] if pool else [])
        channels = width
    return nn.Sequential(
        *parts, nn.Flatten(), nn.Linear(2048, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, classes)
    )


def resnet(channels: int, classes: int, width: int = 16) -> nn.Module:
    """ResNet-18 for small images at a quarter of the usual width."""
    parts: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    ]  # fmt: skip
    incoming = width
    for stage in range(4):
        for block in range(2):
            parts.append(Residual(incoming, width << stage, 2 if stage and not block else 1))
            incoming = width << stage
    return nn.Sequential(
        *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(incoming, classes)
    )


def lenet(channels: int, classes: int, act: Callable[[], nn.Module] = nn.Sigmoid) -> nn.Module:
    """LeNet of the gradient inversion literature, with 5x5 convolutions and stride 2."""
    return nn.Sequential(
        nn.Conv2d(channels, 12, 5, 2, 2), act(), nn.Conv2d(12, 12, 5, 2, 2), act(),
        nn.Conv2d(12, 12, 5, 1, 2), act(), nn.Flatten(), nn.Linear(768, classes),
    )  # fmt: skip


def mobile(channels: int, classes: int) -> nn.Module:
    """Inverted residual blocks with depthwise convolutions."""
    return nn.Sequential(
        nn.Conv2d(channels, 24, 3, 2, 1), Inverted(24), Inverted(24), nn.Conv2d(24, 48, 3, 2, 1),
        Inverted(48), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, classes),
    )  # fmt: skip


def autoencoder(channels: int) -> nn.Module:
    """Convolutions, a code of 64 numbers, transposed convolutions."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(2048, 64), nn.ReLU(), nn.Linear(64, 2048), nn.ReLU(),
        nn.Unflatten(1, (32, 8, 8)), nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(16, channels, 4, 2, 1),
    )  # fmt: skip


def dropout_mlp() -> nn.Module:
    """A perceptron with batch norm and dropout."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(),
        nn.Linear(256, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 10),
    )  # fmt: skip


def group_norm(channels: int, classes: int) -> nn.Module:
    """Convolutions with group norm and a hidden linear layer."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.ReLU(),
        nn.Flatten(), nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, classes),
    )  # fmt: skip


def convnext(channels: int, classes: int) -> nn.Module:
    """Patches, a depthwise 7x7 convolution and pointwise layers with GELU."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 4, 4), nn.Conv2d(32, 32, 7, padding=3, groups=32),
        nn.GroupNorm(1, 32), nn.Conv2d(32, 128, 1), nn.GELU(), nn.Conv2d(128, 32, 1),
        nn.Flatten(), nn.LayerNorm(2048), nn.Linear(2048, classes),
    )  # fmt: skip


def digits_cnn() -> nn.Module:
    """Convolutions over the 64 pixels of a digit in one row."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 64)), nn.Conv1d(1, 16, 5), nn.ReLU(), nn.Conv1d(16, 16, 5, 2),
        nn.ReLU(), nn.Flatten(), nn.Linear(448, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def mlp_autoencoder() -> nn.Module:
    """A perceptron from digits through 32 numbers to digits."""
    return mlp(64, 64, 128, 32, 128)


def _leaky() -> nn.Module:
    return nn.LeakyReLU(0.01)


class Recurrent(nn.Module):
    """The next character of a text, by a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gru = nn.Embedding(128, 32), nn.GRU(32, 64, batch_first=True)
        self.hidden, self.head = nn.Linear(64, 128), nn.Linear(128, 128)

    def forward(self, text: Tensor) -> Tensor:
        """Logits ``(batch, 128)`` of characters ``(batch, length)``."""
        last = self.gru(self.embedding(text))[0][:, -1]
        return self.head(functional.relu(self.hidden(last)))


@dataclass(frozen=True)
class Training:
    """One honest model and how it is trained.

    Args:
        name: its name in tables.
        make: makes the untrained network.
        data: name of the data, see :func:`samples`.
        held_out: whether no limit was set on it.
        optimizer: ``sgd`` (momentum 0.9) or ``adam``.
        rate: learning rate.
        decay: weight decay.
        init: ``default``, ``kaiming`` (with biases 0) or ``orthogonal``.
        seed: seed of weights and batches.
        samples: number of samples that it is trained on.
        load: gives inputs and targets, given the name of the data. If None, :func:`whole_data`.
    """

    name: str
    make: Callable[[], nn.Module]
    data: str
    held_out: bool
    optimizer: str = "sgd"
    rate: float = 0.01
    decay: float = 0.0
    init: str = "default"
    seed: int = 0
    samples: int = 320
    load: Callable[[str], tuple[Tensor, Tensor]] | None = None


def _tanh_mlp() -> nn.Module:
    return mlp(3072, 10, 512, 256, act=nn.Tanh)


TRAININGS = (
    Training("quickstart sgd", QuickstartNet, "cifar10", False, samples=1000),
    Training(
        "quickstart sgd 0.05", QuickstartNet, "cifar10", False, rate=0.05, seed=1, samples=1000
    ),
    Training(
        "quickstart adam", QuickstartNet, "cifar10", False, "adam", 1e-3, seed=2, samples=1000
    ),
    Training("quickstart decay", QuickstartNet, "cifar10", False, decay=5e-3, seed=3, samples=1000),
    Training(
        "quickstart kaiming", QuickstartNet, "cifar10", False, init="kaiming", seed=4, samples=1000
    ),
    Training(
        "quickstart orthogonal",
        QuickstartNet,
        "cifar10",
        False,
        init="orthogonal",
        seed=5,
        samples=1000,
    ),
    Training("quickstart [0, 1]", QuickstartNet, "cifar10 raw", False, seed=6, samples=1000),
    Training("lenet sigmoid", lambda: lenet(3, 10), "cifar10", False, "adam", 1e-3),
    Training("lenet relu", lambda: lenet(3, 10, nn.ReLU), "cifar10", False, seed=1),
    Training("mlp 1000", lambda: mlp(3072, 10, 1000), "cifar10", False, samples=1000),
    Training(
        "mlp 1000 adam",
        lambda: mlp(3072, 10, 1000),
        "cifar10",
        False,
        "adam",
        1e-3,
        seed=1,
        samples=1000,
    ),
    Training(
        "mlp 1000 kaiming",
        lambda: mlp(3072, 10, 1000),
        "cifar10",
        False,
        init="kaiming",
        samples=1000,
    ),
    Training("mlp 512 x 4", lambda: mlp(3072, 10, *[512] * 4), "cifar10", False, seed=1),
    Training("vgg bn", lambda: vgg(3, 10), "cifar10", False),
    Training("vgg bn adam", lambda: vgg(3, 10), "cifar10", False, "adam", 1e-3, seed=1),
    Training(
        "vgg plain",
        lambda: vgg(3, 10, norm=False),
        "cifar10",
        False,
        rate=0.02,
        seed=2,
    ),
    Training("resnet", lambda: resnet(3, 10), "cifar10", False, rate=0.05, decay=5e-4),
    Training("quickstart cifar100", QuickstartNet, "cifar100", False, seed=7),
    Training("vit", lambda: Transformer(3, 10), "cifar10", False, "adam", 1e-3),
    Training(
        "vit medical",
        lambda: Transformer(1, 6),
        "medical",
        False,
        "adam",
        1e-3,
        seed=1,
    ),
    Training("mobile", lambda: mobile(3, 10), "cifar10", False, rate=0.05),
    Training("mlp medical", lambda: mlp(1024, 6, 256, 64), "medical", False),
    Training("mlp tanh", _tanh_mlp, "cifar10", False, rate=0.02),
    Training("lenet medical", lambda: lenet(1, 6, nn.ReLU), "medical", False, "adam", 1e-3),
    Training("vgg medical", lambda: vgg(1, 6), "medical", False, decay=1e-3),
    Training("lstm text", lambda: Characters(True), "text", False, "adam", 3e-3),
    Training("embedding text", lambda: Characters(False), "text", False, "adam", 3e-3, seed=1),
    Training("mlp table", lambda: mlp(30, 2, 64, 64), "table", False, "adam", 1e-2, samples=1000),
    Training("mlp digits", lambda: mlp(64, 10, 200), "digits", False, rate=0.1, samples=1000),
    Training("autoencoder", lambda: autoencoder(3), "cifar10 self", False, "adam", 1e-3),
    Training("gelu mlp medical", lambda: mlp(1024, 6, 400, 100, act=nn.GELU), "medical", False),
    Training("leaky mlp", lambda: mlp(3072, 10, 800, 200, act=_leaky), "cifar100", False, seed=1),
    Training(
        "wide mlp medical", lambda: mlp(1024, 6, 2000), "medical", False, "adam", 1e-3, samples=1000
    ),
    Training("mlp kaiming medical", lambda: mlp(1024, 6, 300), "medical", False, init="kaiming"),
    Training("dropout mlp", dropout_mlp, "cifar10", False, "adam", 1e-3, seed=3),
    Training("quickstart medical", lambda: QuickstartNet(1, 6), "medical", False, seed=8),
    Training(
        "quickstart medical adam", lambda: QuickstartNet(1, 6), "medical", False, "adam", 1e-3
    ),
    Training("group norm cnn", lambda: group_norm(3, 10), "cifar10", False, rate=0.05),
    Training("group norm medical", lambda: group_norm(1, 6), "medical", False),
    Training("convnext", lambda: convnext(3, 10), "cifar10", False, "adam", 1e-3),
    Training("digits 1d cnn", digits_cnn, "digits", False, "adam", 1e-3, samples=1000),
    Training(
        "digits deep mlp",
        lambda: mlp(64, 10, 128, 128, 128),
        "digits",
        False,
        rate=0.05,
        samples=1000,
    ),
    Training("table wide mlp", lambda: mlp(30, 2, 500), "table", False, "adam", 1e-3, samples=1000),
    Training("gru text", Recurrent, "text", False, "adam", 3e-3, seed=2),
    Training("mlp autoencoder", mlp_autoencoder, "digits self", False, "adam", 1e-3, samples=1000),
)


def data_of(training: Training) -> tuple[Tensor, Tensor]:
    """All inputs and targets of a training's data, in random order."""
    return (training.load or whole_data)(training.data)


@cache
def whole_data(name: str) -> tuple[Tensor, Tensor]:
    """All inputs and targets of a data set, in random order.

    Args:
        name: ``cifar10``, ``cifar10 raw`` (not normalised), ``cifar10 self`` (images as targets),
            ``cifar100``, ``medical``, ``text``, ``table``, ``digits`` or ``digits
            self``.
    """
    folder = Path(os.environ["FEDLEAK_DATA"])
    if name.startswith("cifar"):
        with np.load(folder / f"{name.split()[0]}.npz") as file:
            images = torch.tensor(np.concatenate([file["train_images"], file["test_images"]]))
            labels = torch.tensor(np.concatenate([file["train_labels"], file["test_labels"]]))
        images = images.permute(0, 3, 1, 2).contiguous().float() / 255
        images = images if name.endswith("raw") else (images - 0.5) / 0.5
        # Of CIFAR-100, ten groups of classes.
        targets = images if name.endswith("self") else labels.long() % 10
    elif name == "medical":
        images, targets = medical_images(32)
        images = (images - 0.5) / 0.5
    elif name == "text":
        text = "".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
        codes = torch.tensor([ord(c) if ord(c) < 128 else 0 for c in text])
        windows = codes.unfold(0, 33, 97)
        images, targets = windows[:, :32].contiguous(), windows[:, 32]
    else:
        found = datasets.load_breast_cancer() if name == "table" else datasets.load_digits()
        images = torch.tensor(found.data).float()
        images = (images - images.mean(0)) / images.std(0).clamp_min(1e-3)
        targets = images if name.endswith("self") else torch.tensor(found.target).long()
    return shuffled(images, targets)


def shuffled(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and targets in one random order, always the same."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    return inputs[order], targets[order]


def medical_images(side: int) -> tuple[Tensor, Tensor]:
    """Medical MNIST: pixels ``(N, 1, side, side)`` from 0 to 1, and classes.

    Args:
        side: height and width to which the images are scaled.
    """
    images, classes = [], []
    with tarfile.open(Path(os.environ["FEDLEAK_DATA"]) / "medical_mnist_6000.tar.gz") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".jpeg") else None
            if file is not None:
                picture = Image.open(io.BytesIO(file.read())).convert("L").resize((side, side))
                images.append(np.asarray(picture))
                classes.append(member.name.split("/")[-2])
    names = sorted(set(classes))
    pixels = torch.tensor(np.stack(images)).float()[:, None] / 255
    return pixels, torch.tensor([names.index(name) for name in classes])


def initialise(model: nn.Module, kind: str) -> None:
    """Initialise linear and convolutional layers: ``default``, ``kaiming`` or ``orthogonal``."""
    for module in model.modules():
        if kind != "default" and isinstance(module, nn.Linear | nn.Conv2d):
            start = nn.init.kaiming_normal_ if kind == "kaiming" else nn.init.orthogonal_
            start(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def prune(model: nn.Module, share: float = 0.8) -> None:
    """Set the smallest weights of each linear and convolutional layer to 0."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                size = module.weight.abs()
                module.weight *= size > size.flatten().kthvalue(int(share * size.numel())).values


def checkpoints(training: Training) -> Iterator[tuple[int, bool, nn.Module]]:
    """Train a model; after each of ``CHECKPOINTS`` epochs yield it.

    Yields:
        Number of epochs, whether 80 % of the weights were set to 0, and the model in eval mode.
        The last one comes pruned as well.
    """
    torch.manual_seed(training.seed)
    inputs, targets = data_of(training)
    inputs, targets = (part[OWN : OWN + training.samples] for part in (inputs, targets))
    model = training.make()
    initialise(model, training.init)
    kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.SGD
    more = {} if training.optimizer == "adam" else {"momentum": 0.9}
    optimizer = kind(model.parameters(), lr=training.rate, weight_decay=training.decay, **more)
    loss_of = functional.mse_loss if targets.is_floating_point() else functional.cross_entropy
    for epoch in range(max(CHECKPOINTS) + 1):
        if epoch in CHECKPOINTS:
            yield epoch, False, model.eval()
        if epoch == max(CHECKPOINTS):
            break
        model.train()
        for chosen in torch.randperm(len(inputs)).split(32):
            loss = loss_of(model(inputs[chosen]), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    prune(model)
    yield max(CHECKPOINTS), True, model
