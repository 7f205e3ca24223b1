"""Clients that train in every way, small enough that hundreds of them are attacked in seconds.

A :class:`Cell` names a value of each factor: attack, optimiser, reply, mode, loss, kind of samples,
number of samples, and whether the labels are told. :func:`make_victim` trains the client by torch's
own optimiser, on a model of a few hundred parameters, and tells the server every fact right.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks import Attack
from fedleak.models import VariationalBottleneck, kl_penalty
from fedleak.registry import Plugin, build, class_path
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.update import InterceptedUpdate

CLASSES, VOCABULARY, FEATURES = 4, 12, 10


# ----------------------------------------------------------------------------------- the factors


class Trained(NamedTuple):
    """An optimiser: torch's class with its arguments, which have the names of LocalTraining."""

    kind: Callable[..., torch.optim.Optimizer]
    name: str
    rate: float
    options: dict[str, Any]


OPTIMIZERS: dict[str, Trained] = {
    "sgd": Trained(torch.optim.SGD, "sgd", 0.1, {}),
    "momentum": Trained(torch.optim.SGD, "sgd", 0.1, {"momentum": 0.9}),
    "nesterov": Trained(torch.optim.SGD, "sgd", 0.1, {"momentum": 0.9, "nesterov": True}),
    "weight decay": Trained(torch.optim.SGD, "sgd", 0.1, {"weight_decay": 0.1}),
    "adam": Trained(torch.optim.Adam, "adam", 1e-3, {}),
    "adamw": Trained(torch.optim.AdamW, "adamw", 1e-3, {"weight_decay": 0.01}),
    "rmsprop": Trained(torch.optim.RMSprop, "rmsprop", 1e-4, {}),
    "adagrad": Trained(torch.optim.Adagrad, "adagrad", 1e-3, {}),
}

# Protocol and number of local steps, each on all samples.
REPLIES: dict[str, tuple[str, int]] = {
    "gradient": ("fedsgd", 1),
    "weights": ("fedavg", 1),
    "delta": ("delta", 1),
    "three steps": ("fedavg", 3),
}

# Samples' shapes, and the range that an attack is told of those that have one.
SHAPES: dict[str, tuple[int, ...]] = {
    "images": (1, 6, 6),
    "rows": (6,),
    "series": (2, 8),
    "tokens": (4,),
}

# Attacks with settings that make them quick. They need not find anything: they have to say so.
ATTACKS: dict[str, dict[str, Any]] = {
    name: {"iterations": 30, "learning_rate": 0.05, "compile": "off"}
    for name in ("iga", "nra", "iga_partial")
}
ATTACKS |= {
    "dlg": {"iterations": 5},
    "idlg": {"iterations": 5},
    "exact_nra": {
        "solver_iterations": 100, "image_iterations": 5, "matching_steps": 3, "joint_steps": 1,
        "nra_iterations": 20,
    },
    "analytic": {},
    "exact_batch": {"starts": 16, "rows": 2},
    "rows": {},
    "tokens": {"iterations": 3, "evaluations": 60},
}  # fmt: skip
ATTACKS["rgap"] = ATTACKS["exact_nra"]

FACTORS: dict[str, Sequence[Any]] = {
    "attack": tuple(ATTACKS),
    "optimizer": tuple(OPTIMIZERS),
    "reply": tuple(REPLIES),
    "mode": ("train", "eval", "mixed"),
    "loss": (
        "mean", "weights", "smoothing", "sum", "several labels", "regression", "autoencoder",
        "own",
    ),
    "kind": tuple(SHAPES),
    "number": (1, 2),
    "told": (True, False),
}  # fmt: skip


class Cell(NamedTuple):
    """A value of each factor."""

    attack: str
    optimizer: str
    reply: str
    mode: str
    loss: str
    kind: str
    number: int
    told: bool

    def __str__(self) -> str:
        labels = "labels told" if self.told else "labels not told"
        return "-".join([*map(str, self[:-2]), f"{self.number} samples", labels])


NEEDS_NOISE = ("nra", "iga_partial", "exact_nra")
NEEDS_LINEAR = ("analytic", "exact_batch", "exact_nra", "rgap")
OF_NUMBERS = ("rows", "tokens")


def fits(cell: Mapping[str, Any]) -> bool:
    """Whether an attack is one for samples of this kind; the others are refused.

    Args:
        cell: values of some factors.
    """
    if "attack" not in cell or "kind" not in cell:
        return True
    return (cell["attack"] in OF_NUMBERS) == (cell["kind"] == "tokens")


@lru_cache
def covering_cells(strength: int = 2) -> tuple[Cell, ...]:
    """Cells in which any values of so many factors that fit occur together; the same every time.

    One cell after the other is begun with values that are missing, and each further factor takes
    the value that adds most missing ones, as in the AETG system (Cohen et al., IEEE TSE 1997).

    Args:
        strength: number of factors.
    """
    names = list(FACTORS)
    missing = {
        tuple(zip(chosen, values, strict=True)): None
        for chosen in itertools.combinations(names, strength)
        for values in itertools.product(*(FACTORS[name] for name in chosen))
        if fits(dict(zip(chosen, values, strict=True)))
    }
    found = []
    while missing:
        cell = dict(next(iter(missing)))
        # What limits the others comes first.
        for name in sorted(set(names) - set(cell), key=lambda n: (n not in ("attack", "kind"), n)):
            # Of values that add as much, the next in turn.
            values = FACTORS[name]
            turned = [values[(len(found) + i) % len(values)] for i in range(len(values))]
            allowed = [value for value in turned if fits(cell | {name: value})]
            cell[name] = max(
                allowed,
                key=lambda v: sum(
                    part in missing for part in _parts(cell | {name: v}, strength, name)
                ),
            )
        for part in _parts(cell, strength):
            missing.pop(part, None)
        found.append(Cell(**cell))
    return tuple(found)


def _parts(
    cell: Mapping[str, Any], strength: int, with_: str | None = None
) -> Iterator[tuple[tuple[str, Any], ...]]:
    """The values of so many factors, in the factors' order; only those with one, if it is given."""
    order = [(name, cell[name]) for name in FACTORS if name in cell]
    for part in itertools.combinations(order, strength):
        if with_ is None or any(name == with_ for name, _ in part):
            yield part


# ------------------------------------------------------------------------------------ the models


class Net(nn.Module):
    """A stem for the kind of samples, batch norm, a linear layer, PRECODE if any, a classifier."""

    def __init__(
        self, kind: str, outputs: int, *, linear: bool = False, precode: bool = False
    ) -> None:
        super().__init__()
        size = math.prod(SHAPES[kind])
        if kind in ("images", "series") and not linear:
            channels = SHAPES[kind][0]
            self.stem: nn.Module = (nn.Conv2d if kind == "images" else nn.Conv1d)(
                channels, 6, kernel_size=3, padding=1
            )
            width = 6 * size // channels
        else:
            embed = nn.Embedding(VOCABULARY, 6) if kind == "tokens" else nn.Identity()
            width = 24
            self.stem = nn.Sequential(
                embed, nn.Flatten(), nn.Linear(24 if kind == "tokens" else size, width),
                nn.Unflatten(1, (6, 4)),
            )  # fmt: skip
        flat = isinstance(self.stem, nn.Conv2d)
        self.norm: Any = (nn.BatchNorm2d if flat else nn.BatchNorm1d)(6)
        self.hidden = nn.Linear(width, FEATURES)
        self.guard: nn.Module = nn.Identity()
        if precode:
            self.guard = VariationalBottleneck(FEATURES, bottleneck_size=5, beta=0.01)
        self.head = nn.Linear(FEATURES, outputs)
        with torch.no_grad():
            self.norm.running_mean.normal_(std=0.3)
            self.norm.running_var.uniform_(0.3, 0.8)

    def forward(self, samples: Tensor) -> Tensor:
        features = self.norm(self.stem(samples)).sigmoid().flatten(1)
        return self.head(self.guard(self.hidden(features).tanh()))


class OwnNet(Net):
    """The same, whose loss is its own."""

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self(batch[0]), batch[1]) + kl_penalty(self)


def _autoencoder(outputs: Tensor, samples: Tensor) -> Tensor:
    if samples.is_floating_point():
        return functional.mse_loss(outputs, samples.flatten(1))
    return functional.cross_entropy(outputs.reshape(-1, VOCABULARY), samples.flatten())


CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": functional.cross_entropy,
    "weights": partial(functional.cross_entropy, weight=torch.linspace(0.5, 3, CLASSES)),
    "smoothing": partial(functional.cross_entropy, label_smoothing=0.1),
    "sum": partial(functional.cross_entropy, reduction="sum"),
    "several labels": functional.binary_cross_entropy_with_logits,
    "regression": lambda outputs, labels: functional.mse_loss(outputs[:, 0], labels),
}


def loss_named(name: str) -> Callable[[nn.Module, Any], Tensor]:
    """A loss of :data:`CRITERIA`, or that of an autoencoder."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        outputs = model(batch[0])
        if name == "autoencoder":
            return _autoencoder(outputs, batch[0]) + kl_penalty(model)
        return CRITERIA[name](outputs, batch[1]) + kl_penalty(model)

    return loss


def _outputs(cell: Cell) -> int:
    if cell.loss == "autoencoder":
        return math.prod(SHAPES[cell.kind]) * (VOCABULARY if cell.kind == "tokens" else 1)
    return 1 if cell.loss == "regression" else CLASSES


# ----------------------------------------------------------------------------------- the victims


@dataclass(frozen=True)
class Victim:
    """A client's update, what the server knows, and what is kept from the server.

    Args:
        update: the update.
        knowledge: what the server knows, all of it right.
        inputs: the client's samples.
        labels: their labels.
    """

    update: InterceptedUpdate
    knowledge: Knowledge
    inputs: Tensor
    labels: Tensor

    @property
    def guess(self) -> Tensor:
        """The mean of all samples of this kind, a guess without the update."""
        return torch.full_like(self.inputs, 0.5 if self.inputs.dim() == 4 else 0.0)


def samples_of(kind: str, number: int, seed: int) -> Tensor:
    """Samples that were made up: images in [0, 1], others of mean 0 and variance 1."""
    generator = torch.Generator().manual_seed(seed)
    shape = (number, *SHAPES[kind])
    if kind == "tokens":
        return torch.randint(VOCABULARY, shape, generator=generator)
    if kind == "rows":
        return torch.randn(shape, generator=generator)
    if kind == "images":
        return torch.rand(shape, generator=generator)
    phase = torch.rand(*shape[:-1], 1, generator=generator)
    speed = 0.5 + torch.rand(*shape[:-1], 1, generator=generator)
    return 2**0.5 * torch.sin(2 * torch.pi * (phase + speed * torch.linspace(0, 1, shape[-1])))


def labels_of(loss: str, number: int, seed: int) -> Tensor:
    """Labels as a loss takes them."""
    generator = torch.Generator().manual_seed(1000 + seed)
    if loss == "several labels":
        return torch.randint(2, (number, CLASSES), generator=generator).float()
    if loss == "regression":
        return torch.randn(number, generator=generator)
    return torch.randperm(CLASSES, generator=generator)[:number]


def make_victim(cell: Cell, seed: int = 0) -> Victim:
    """A client that trains as the cell says, by torch's own optimiser.

    Args:
        cell: what it does; of the attack, whether it takes noise or a linear layer.
        seed: seeds weights, samples and labels.
    """
    inputs = samples_of(cell.kind, cell.number, seed)
    labels = labels_of(cell.loss, cell.number, seed)
    with torch.random.fork_rng():
        torch.manual_seed(100 + seed)
        model = (OwnNet if cell.loss == "own" else Net)(
            cell.kind, _outputs(cell), linear=cell.attack in NEEDS_LINEAR,
            precode=cell.attack in NEEDS_NOISE,
        )  # fmt: skip
    model.train(cell.mode != "eval")
    if cell.mode == "mixed":
        model.norm.eval()
    loss = OwnNet.batch_loss if cell.loss == "own" else loss_named(cell.loss)
    protocol, steps = REPLIES[cell.reply]
    trained = OPTIMIZERS[cell.optimizer]
    own = copy.deepcopy(model)
    optimizer = trained.kind(own.parameters(), lr=trained.rate, **trained.options)
    with torch.random.fork_rng():
        torch.manual_seed(200 + seed)  # of the noise
        for _ in range(steps):
            optimizer.zero_grad()
            loss(own, (inputs, labels)).backward()
            if protocol != "fedsgd":
                optimizer.step()
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    if protocol == "fedsgd":
        received = {n: v.grad for n, v in own.named_parameters() if v.grad is not None}
    else:
        received = {name: value.clone() for name, value in own.state_dict().items()}
        if protocol == "delta":
            received = {name: value - sent[name] for name, value in received.items()}
    facts: dict[str, Any] = {} if cell.loss == "own" else {"loss": loss}
    knowledge = Knowledge(
        model,
        SHAPES[cell.kind],
        CLASSES if CRITERIA.get(cell.loss) and _outputs(cell) == CLASSES else None,
        num_samples=cell.number,
        labels=labels if cell.told else None,
        protocol=protocol,  # type: ignore[arg-type]
        local_training=LocalTraining(
            optimizer=trained.name,  # type: ignore[arg-type]
            learning_rate=trained.rate,
            steps=steps,
            batch_size=cell.number,
            **trained.options,
        ),
        training={"train": True, "eval": False, "mixed": None}[cell.mode],
        **facts,
    )
    update = InterceptedUpdate(1, seed, protocol, cell.number, "net", sent, received)  # type: ignore[arg-type]
    return Victim(update, knowledge, inputs, labels)


def make_attack(name: str) -> Attack:
    """An attack by its name, with the settings of :data:`ATTACKS`."""
    return build("attacks", Plugin(class_path("attacks", name), ATTACKS[name]))
