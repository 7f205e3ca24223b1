"""The settings of measure.py: clients that train in every way, and what the server knows of them."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak import DLG, IGA, RGAP, Analytic, InterceptedUpdate, Knowledge, LocalTraining
from fedleak.attacks import Attack
from fedleak.data.photos import photo_patches

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
        metric: see :func:`experiments.federations.measure.score`.
    """

    group: str
    name: str
    make: Callable[[int], Victim]
    attack: Callable[[], Attack] = field(default=lambda: IGA(iterations=1500))
    metric: str = "SSIM"


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
    options: Mapping[str, Any] = {},  # noqa: B006 - not changed
    told: Mapping[str, Any] = {},  # noqa: B006
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
        optimizer=name, learning_rate=rate, steps=steps, schedule=schedule, **options | told  # type: ignore[operator]
    )
    update = InterceptedUpdate(1, seed, protocol, number, "net", sent, received)  # type: ignore[arg-type]
    knowledge = Knowledge(
        model, tuple(inputs.shape[1:]),
        **{"num_classes": CLASSES, "num_samples": number, "loss": loss} | facts,
        labels=labels if known else None, protocol=protocol, local_training=training,
    )  # type: ignore[arg-type]
    guess = photographs()[2].expand_as(inputs) if inputs.shape[1:] == SHAPE else inputs * 0
    return Victim(update, knowledge, inputs, labels, guess)
