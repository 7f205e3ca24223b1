"""The settings of measure.py: clients that train in every way, and what the server knows."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak import IGA, RGAP, Analytic, InterceptedUpdate, Knowledge, LocalTraining
from fedleak.attacks import Attack
from fedleak.data.photos import photo_patches
from fedleak.models import ResNet18
from fedleak.registry import Plugin, build, class_path

CLASSES, SIDE = 8, 16
SHAPE = (3, SIDE, SIDE)
Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Victim:
    """A client's update, what the server knows, and what is kept from the server.

    Args:
        update: the update.
        knowledge: what the server knows.
        inputs: the client's samples.
        labels: their labels. If None, there are none.
        guess: a guess without the update, of the inputs' shape.
    """

    update: InterceptedUpdate
    knowledge: Knowledge
    inputs: Tensor
    labels: Tensor | None
    guess: Tensor


@dataclass(frozen=True)
class Setting:
    """A row of the table.

    Args:
        group: what is varied.
        name: its value.
        make: makes the victim of a number.
        attack: makes the attack.
        metric: see ``measure.score``.
        most: largest number of victims.
    """

    group: str
    name: str
    make: Callable[[int], Victim]
    attack: Callable[[], Attack] = field(default=lambda: IGA(iterations=600))
    metric: str = "SSIM"
    most: int = 5


@lru_cache(maxsize=1)
def photographs() -> tuple[Tensor, Tensor, Tensor]:
    """Patches ``(N, 3, 16, 16)`` in [0, 1] of fedleak's photographs, labels, and their mean."""
    images, labels, _, _ = photo_patches()
    pixels = torch.from_numpy(images).float() / 255
    small = functional.avg_pool2d(pixels, 2)
    return small, torch.from_numpy(labels), small.mean(dim=0)


def pictures(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """A client's photographs and their labels."""
    images, labels, _ = photographs()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator)[:number]
    return images[chosen], labels[chosen]


def convolutional(outputs: int = CLASSES) -> nn.Module:
    """Two convolutions with sigmoid and a classifier, as in the LeNet of DLG."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 5, 2, 2), nn.Sigmoid(), nn.Conv2d(12, 12, 5, 1, 2), nn.Sigmoid(),
        nn.Flatten(), nn.Linear(12 * (SIDE // 2) ** 2, outputs),
    )  # fmt: skip


def normalised_net(dropout: float = 0.0) -> nn.Module:
    """The same with batch norm, and dropout before the classifier if there is any."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 5, 2, 2), nn.BatchNorm2d(12), nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, 1, 2), nn.BatchNorm2d(12), nn.Sigmoid(),
        nn.Flatten(), nn.Dropout(dropout), nn.Linear(12 * (SIDE // 2) ** 2, CLASSES),
    )  # fmt: skip


def cross_entropy(model: nn.Module, batch: Any, **settings: Any) -> Tensor:
    """Cross entropy with the settings of torch's function."""
    return functional.cross_entropy(model(batch[0]), batch[1], **settings)


def client(
    seed: int,
    *,
    net: Callable[[], nn.Module] = convolutional,
    number: int = 1,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    rate: float = 0.05,
    options: Mapping[str, Any] = {},
    told: Mapping[str, Any] = {},
    steps: int = 1,
    schedule: Callable[[int], float] | None = None,
    protocol: str = "fedavg",
    loss: Loss = cross_entropy,
    prepare: Callable[[nn.Module], Any] = lambda _: None,
    known: bool = False,
    make: Callable[[int, int], tuple[Tensor, Tensor]] = pictures,
    keep: Callable[[str], bool] = lambda _: True,
    **facts: Any,
) -> Victim:
    """A client that trains by torch's own optimiser and sends what its protocol says.

    Args:
        seed: number of the victim: seeds samples and weights.
        net: makes the model.
        number: number of samples, all of which are in every step.
        optimizer: class of the optimiser.
        rate: its learning rate.
        options: its other arguments.
        told: the same as LocalTraining calls them.
        steps: number of steps.
        schedule: factor on the rate by step.
        protocol: fedsgd, fedavg or delta.
        loss: the loss of a batch.
        prepare: changes the model before training, such as its modes.
        known: whether the server knows the labels.
        make: makes the samples.
        keep: which parameters are sent.
        facts: further arguments of Knowledge.
    """
    inputs, labels = make(number, seed)
    torch.manual_seed(100 + seed)
    model = net()
    prepare(model)
    own = copy.deepcopy(model)
    moving = [value for value in own.parameters() if value.requires_grad]
    torchs = optimizer(moving, lr=rate, **options)
    factor = schedule or (lambda _: 1.0)
    for step in range(steps):
        for group in torchs.param_groups:
            group["lr"] = rate * factor(step)
        torchs.zero_grad()
        loss(own, (inputs, labels)).backward()
        if protocol == "fedsgd":
            break
        torchs.step()
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    if protocol == "fedsgd":
        received = {n: v.grad for n, v in own.named_parameters() if v.grad is not None}
    else:
        received = {n: v.clone() for n, v in own.state_dict().items()}
        if protocol == "delta":
            received = {n: v - sent[n] for n, v in received.items()}
    received = {name: value for name, value in received.items() if keep(name)}
    name = {torch.optim.SGD: "sgd"}.get(optimizer, optimizer.__name__.lower())  # type: ignore[call-overload, attr-defined]
    training = LocalTraining(
        optimizer=name,
        learning_rate=rate,
        steps=steps,
        schedule=schedule,
        **options | told,  # type: ignore[operator]
    )
    update = InterceptedUpdate(1, seed, protocol, number, "net", sent, received)  # type: ignore[arg-type]
    knowledge = Knowledge(
        model,
        tuple(inputs.shape[1:]),
        **{"num_classes": CLASSES, "num_samples": number, "loss": loss} | facts,
        labels=labels if known else None,
        protocol=protocol,
        local_training=training,
    )  # type: ignore[arg-type]
    guess = photographs()[2].expand_as(inputs) if inputs.shape[1:] == SHAPE else inputs * 0
    return Victim(update, knowledge, inputs, labels, guess)


def table_rows(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Standardised rows of the breast cancer data of scikit-learn, and their classes."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    rows = torch.from_numpy(data.data).float()
    rows = (rows - rows.mean(dim=0)) / rows.std(dim=0)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:number]
    return rows[chosen], torch.from_numpy(data.target)[chosen]


def targets(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """The same rows without their first column, which is the target."""
    rows, _ = table_rows(number, seed)
    return rows[:, 1:], rows[:, 0]


def perceptron(inputs: int, outputs: int) -> nn.Module:
    """One hidden layer with ReLU."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, outputs))


def sentences(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences of 8 of 60 tokens, and a class."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(60, (number, 8), generator=generator), torch.randint(
        4, (number,), generator=generator
    )


class Reader(nn.Module):
    """Embedding, a recurrent layer and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 16)
        self.rnn = nn.GRU(16, 32, batch_first=True)
        self.out = nn.Linear(32, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(N, 4)``."""
        return self.out(self.rnn(self.embed(tokens))[0][:, -1])


class Encoder(nn.Module):
    """Patches, two transformer layers and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        # Without places, the patches' order leaves no trace in the gradient.
        self.place = nn.Parameter(torch.randn(1, (SIDE // 4) ** 2, 32) * 0.5)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(32, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 8)``."""
        patches = self.patch(images).flatten(2).transpose(1, 2) + self.place
        return self.out(self.body(patches).mean(1))


class Adapted(nn.Module):
    """A frozen linear layer and two trained matrices of low rank beside it (LoRA)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.a, self.b = nn.Linear(inputs, 8, bias=False), nn.Linear(8, outputs, bias=False)
        nn.init.normal_(self.b.weight, std=0.05)

    def forward(self, rows: Tensor) -> Tensor:
        """``(N, outputs)``."""
        return self.base(rows) + 2 * self.b(self.a(rows))


def adapted() -> nn.Module:
    """Three layers with adapters on flattened images."""
    size = 3 * SIDE * SIDE
    return nn.Sequential(
        nn.Flatten(), Adapted(size, 64), nn.GELU(), Adapted(64, 64), nn.GELU(), Adapted(64, CLASSES)
    )


def frozen_statistics(model: nn.Module) -> None:
    """The first batch norm in eval mode with statistics of its own, as in transfer learning."""
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.running_mean.normal_(std=0.3)  # type: ignore[union-attr]
    norm.running_var.uniform_(0.2, 0.6)  # type: ignore[union-attr]
    norm.eval()


def one_logit(model: nn.Module, batch: Any) -> Tensor:
    """Binary cross entropy of one output, of even against odd classes."""
    labels = (batch[1] % 2).float()
    return functional.binary_cross_entropy_with_logits(model(batch[0])[:, 0], labels)


def own_samples(model: nn.Module, batch: Any) -> Tensor:
    """Mean squared error of an autoencoder."""
    flat = batch[0].flatten(1)
    return functional.mse_loss(model(flat), flat)


def regression(model: nn.Module, batch: Any) -> Tensor:
    """Mean squared error of one output."""
    return functional.mse_loss(model(batch[0])[:, 0], batch[1])


def several_labels(model: nn.Module, batch: Any) -> Tensor:
    """Binary cross entropy by class."""
    wanted = functional.one_hot(batch[1], CLASSES).to(batch[0])
    return functional.binary_cross_entropy_with_logits(model(batch[0]), wanted)


def by_name(name: str) -> Attack:
    """An attack with its default settings."""
    return build("attacks", Plugin(class_path("attacks", name)))


def resnet_victim(seed: int) -> Victim:
    """32 images in one gradient of a ResNet-18 that was trained a little, in train mode."""
    torch.manual_seed(seed)
    model = ResNet18(input_shape=SHAPE, num_classes=CLASSES).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(30):
        images, labels = pictures(32, 1000 + step)
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    trained = copy.deepcopy(model)
    return client(seed, net=lambda: trained, number=32, protocol="fedsgd")


SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
RMSprop, Adagrad = torch.optim.RMSprop, torch.optim.Adagrad
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {},
    "SGD, momentum 0.9": {"options": {"momentum": 0.9}},
    "SGD, Nesterov": {"options": {"momentum": 0.9, "nesterov": True}},
    "SGD, weight decay 0.01": {"options": {"weight_decay": 0.01}},
    "Adam": {"optimizer": Adam, "rate": 1e-3},
    "AdamW": {"optimizer": AdamW, "rate": 1e-3, "options": {"weight_decay": 0.01}},
    "RMSprop": {"optimizer": RMSprop, "rate": 1e-4},
    "Adagrad": {"optimizer": Adagrad, "rate": 1e-3},
}
THREE: dict[str, dict[str, Any]] = {
    name: OPTIMIZERS[name] for name in ("SGD", "SGD, momentum 0.9", "Adam", "AdamW", "RMSprop")
} | {"SGD, rate halved in each step": {"schedule": lambda step: 0.5**step}}
FLAT = 3 * SIDE * SIDE

SETTINGS: list[Setting] = [
    *(
        Setting("optimiser, one step", name, partial(client, **made))
        for name, made in OPTIMIZERS.items()
    ),
    *(
        Setting("optimiser, three steps", name, partial(client, steps=3, **made))
        for name, made in THREE.items()
    ),
    Setting("reply", "gradient", partial(client, protocol="fedsgd")),
    Setting("reply", "delta", partial(client, protocol="delta")),
    Setting(
        "reply", "without the classifier, label known",
        partial(client, known=True, keep=lambda name: not name.startswith("5")),
    ),
    Setting(
        "reply", "adapters alone (LoRA), label known",
        partial(
            client, net=adapted, known=True,
            keep=lambda name: ".a." in name or ".b." in name,
        ),
    ),
    Setting("mode", "batch norm in eval mode", partial(
        client, net=normalised_net, prepare=lambda model: model.eval()
    )),
    Setting("mode", "batch norm in train mode", partial(client, net=normalised_net)),
    Setting("mode", "first batch norm in eval mode", partial(
        client, net=normalised_net, prepare=frozen_statistics
    )),
    Setting("mode", "dropout 0.1 in train mode", partial(client, net=partial(normalised_net, 0.1))),
    Setting("loss", "label smoothing 0.1", partial(
        client, loss=partial(cross_entropy, label_smoothing=0.1)
    )),
    Setting("loss", "class weights", partial(
        client, loss=partial(cross_entropy, weight=torch.linspace(0.5, 4, CLASSES))
    )),
    Setting("loss", "sum over 2 images", partial(
        client, number=2, loss=partial(cross_entropy, reduction="sum")
    )),
    Setting("loss", "one logit, label known", partial(client, loss=one_logit, known=True)),
    Setting("loss", "several labels, label known", partial(
        client, loss=several_labels, known=True
    )),
    Setting("loss", "autoencoder (perceptron)", partial(
        client, net=partial(perceptron, FLAT, FLAT), loss=own_samples, rate=1.0
    ), RGAP),
    Setting("samples", "4 images", partial(client, number=4)),
    Setting("samples", "16 images", partial(client, number=16)),
    Setting("samples", "row of a table, 30 columns", partial(
        client, net=partial(perceptron, 30, 2), make=table_rows, num_classes=2
    ), RGAP, "relative error"),
    Setting("samples", "row of a table, regression", partial(
        client, net=partial(perceptron, 29, 1), make=targets, loss=regression, num_classes=1
    ), Analytic, "relative error"),
    Setting("samples", "row of a table, Adam", partial(
        client, net=partial(perceptron, 30, 2), make=table_rows, num_classes=2, optimizer=Adam,
        rate=1e-3,
    ), RGAP, "relative error"),
    Setting("samples", "sequence of 8 tokens", partial(
        client, net=Reader, make=sentences, num_classes=4, known=True
    ), partial(by_name, "tokens"), "tokens"),
    Setting("model", "transformer on patches", partial(client, net=Encoder, protocol="fedsgd")),
    Setting("model", "ResNet-18, trained, train mode, 32 images", resnet_victim, partial(
        IGA, iterations=100, compile="off"
    ), most=1),
]  # fmt: skip
