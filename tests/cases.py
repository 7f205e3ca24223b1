"""The table of cases that the generic suites run over: every attack on every model.

A new attack or model gets one row here (a test fails until it has one) and so goes through the
suites of tests/attacks/test_attacks.py, test_gradients.py and tests/models/test_models.py. Shapes
and iterations are small: a row is there to be run in a fraction of a second.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fedleak.attacks import (
    DLG,
    IDLG,
    IGA,
    NRA,
    RGAP,
    Analytic,
    Attack,
    ExactBatch,
    ExactNRA,
    PartialIGA,
)
from fedleak.models import DMLP, SMLP, LeNet, LeNetR, Precode, ResNet18, record
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge, batch_loss
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate
from tests.toys import OwnClassifier

CLASSES = 4
RATE = 0.05  # of several local steps
MEAN, STD = (0.45, 0.4, 0.5), (0.25, 0.3, 0.2)


@dataclass(frozen=True, eq=False)
class AttackCase:
    """An attack with settings that make it quick.

    Args:
        kind: the class.
        settings: its hyperparameters.
    """

    kind: type[Attack]
    settings: dict[str, Any]

    @property
    def boxed(self) -> bool:
        """Whether it keeps inputs within the valid range with these settings."""
        return self.kind.boxed and self.settings.get("box", True)

    @property
    def precode(self) -> bool:
        """Whether it takes a model with PRECODE."""
        return self.kind.noise != "refused"

    @property
    def batch(self) -> int:
        """A batch size that it takes."""
        return 2 if self.kind.batches else 1

    def fits(self, model: "ModelCase", *, precode: bool | None = None) -> bool:
        """Whether it takes the model, without PRECODE or with (None: in one of the two ways)."""
        if self.kind.needs_first_linear and model.kind not in (SMLP, DMLP):
            return False
        return precode is None or self.kind.noise != ("refused" if precode else "required")

    def make(self, **changes: Any) -> Attack:
        return self.kind(**self.settings | changes)

    def __str__(self) -> str:
        changed = "-".join(f"{n}={v}" for n, v in self.settings.items() if n != "iterations")
        return f"{self.kind.name}-{changed}" if changed else self.kind.name


@dataclass(frozen=True, eq=False)
class ModelCase:
    """A model with the smallest shapes that it makes sense with.

    Args:
        kind: the class.
        shape: channels, height and width of the images.
        settings: further arguments.
        name: its name in the tests' names.
        heavy: whether it has too many parameters for suites that run every attack on it.
        bottleneck: the kind that it has where it has one.
    """

    kind: Callable[..., nn.Module]
    shape: tuple[int, int, int]
    settings: dict[str, Any]
    name: str
    heavy: bool = False
    bottleneck: Literal["linear", "convolutional"] = "linear"

    def make(self, *, precode: bool, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
        """The untrained model, the same every time."""
        bottleneck = Precode(5, beta=0.01, kind=self.bottleneck) if precode else None
        settings = {"input_shape": self.shape, "num_classes": CLASSES, "precode": bottleneck}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.kind(**settings | self.settings | changes).to(dtype)

    def __str__(self) -> str:
        return f"{self.name}-{'x'.join(map(str, self.shape))}"


ATTACKS = (
    AttackCase(IGA, {"iterations": 6}),
    AttackCase(IGA, {"iterations": 6, "restarts": 2, "signed": False, "learning_rate": 0.1}),
    AttackCase(IGA, {"iterations": 6, "cost": "squared_error", "box": False}),
    AttackCase(NRA, {"iterations": 6}),
    AttackCase(NRA, {"iterations": 6, "restarts": 2, "total_variation": 0.0, "decay": False}),
    AttackCase(NRA, {"iterations": 6, "start": "zeros"}),
    AttackCase(PartialIGA, {"iterations": 6}),
    AttackCase(DLG, {"iterations": 1}),
    AttackCase(IDLG, {"iterations": 4, "optimizer": "adam", "learning_rate": 0.1}),
    AttackCase(Analytic, {}),
    AttackCase(ExactBatch, {"starts": 64, "rows": 4}),
    AttackCase(
        ExactNRA,
        {
            "solver_iterations": 40,
            "image_iterations": 3,
            "matching_steps": 1,
            "joint_steps": 1,
            "nra_iterations": 4,
        },
    ),
    AttackCase(
        RGAP,
        {
            "solver_iterations": 40,
            "image_iterations": 3,
            "matching_steps": 1,
            "joint_steps": 1,
            "nra_iterations": 4,
        },
    ),
    AttackCase(
        RGAP,
        {
            "solver_iterations": 40,
            "image_iterations": 3,
            "soft_gates": True,
            "matching_steps": 1,
            "joint_steps": 1,
            "nra_iterations": 4,
        },
    ),
)

MODELS = (
    ModelCase(SMLP, (1, 8, 8), {"width": 24}, "smlp"),
    ModelCase(DMLP, (3, 5, 6), {"width": 16}, "dmlp"),
    ModelCase(LeNet, (3, 12, 10), {}, "lenet"),
    ModelCase(LeNetR, (1, 8, 8), {}, "lenetr"),
    ModelCase(LeNetR, (2, 7, 11), {}, "lenetr"),
    ModelCase(ResNet18, (1, 8, 8), {"norm": "group"}, "resnet18", heavy=True),
    ModelCase(OwnClassifier, (1, 7, 6), {}, "own"),
    ModelCase(LeNetR, (1, 8, 8), {}, "lenetr-cvb", bottleneck="convolutional"),
)
LIGHT_MODELS = [case for case in MODELS if not case.heavy]


@dataclass(frozen=True, eq=False)
class Pair:
    """An attack on a model, with or without PRECODE."""

    attack: AttackCase
    model: ModelCase
    precode: bool

    @property
    def repeatable(self) -> bool:
        """Whether the reconstruction holds all that its cost was computed from."""
        if self.attack.kind.restores_labels or not self.attack.kind.iterative:  # labels were soft
            return False
        return not self.precode or self.attack.kind.restores_noise

    def __str__(self) -> str:
        return f"{self.attack}-on-{self.model}{'-precode' if self.precode else ''}"


# Other settings of an attack are tried on two models; on all of them it is itself.
FIRST_OF_KIND = {case.kind: case for case in reversed(ATTACKS)}.values()
PAIRS = [
    Pair(attack, model, precode)
    for attack in ATTACKS
    for model in (LIGHT_MODELS if attack in FIRST_OF_KIND else (MODELS[0], MODELS[3]))
    for precode in (False, True)
    if attack.fits(model, precode=precode)
]


class Victim(NamedTuple):
    """A client's update, what the server knows of it, and what is kept from the server."""

    update: InterceptedUpdate
    knowledge: Knowledge
    truth: GroundTruth

    @property
    def model(self) -> Any:
        return self.knowledge.model


def pictures(count: int, shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    """Smooth pictures ``(count, *shape)`` with pixels in [0.1, 0.9], float64."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    phase, speed = torch.rand(2, count, channels, 1, 1, generator=generator, dtype=torch.float64)
    rows = torch.arange(height, dtype=torch.float64).reshape(-1, 1) / height
    columns = torch.arange(width, dtype=torch.float64) / width
    waves = torch.sin(2 * math.pi * (phase + (0.5 + speed) * rows))
    return 0.5 + 0.4 * waves * torch.cos(2 * math.pi * (speed - phase * columns))


def make_victim(
    model: nn.Module,
    shape: tuple[int, ...],
    *,
    batch: int = 1,
    client: int = 0,
    labels: list[int] | None = None,
    training: bool = True,
    num_classes: int = CLASSES,
) -> Victim:
    """A client that computes the gradient of one batch of pictures; the model is left as it was."""
    dtype = next(model.parameters()).dtype
    mean, std = MEAN[: shape[0]], STD[: shape[0]]
    scale = torch.tensor([mean, std], dtype=dtype).reshape(2, -1, 1, 1)
    inputs = (pictures(batch, shape, seed=client).to(dtype) - scale[0]) / scale[1]
    chosen = torch.tensor(labels or [(client + 2 * i + 1) % num_classes for i in range(batch)])
    gradient, noise = client_gradient(model, inputs, chosen, training=training, seed=client)
    sent = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return Victim(
        InterceptedUpdate(1, client, "fedsgd", batch, "case", sent, gradient),
        Knowledge(
            model, shape, num_classes, mean=mean, std=std, num_samples=batch, labels=chosen,
            training=training,
        ),
        GroundTruth(inputs, chosen, noise),
    )  # fmt: skip


def client_gradient(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, training: bool = True, seed: int = 0
) -> tuple[Tensors, Tensors]:
    """The gradient of a batch by plain autograd, and the noise that was drawn for it."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mode = model.training
    model.train(training)
    with torch.random.fork_rng(), record(model) as notes:
        torch.manual_seed(1000 + seed)
        loss = batch_loss(model, (inputs, labels))
    names, parameters = zip(*model.named_parameters(), strict=True)
    values = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    model.load_state_dict(before)
    model.train(mode)
    noise = {name: values[0] for name, values in notes.items() if values}
    return dict(zip(names, values, strict=True)), noise


def case_victim(case: ModelCase, *, precode: bool, **settings: Any) -> Victim:
    """A victim of a model of the table; ``dtype`` as for :meth:`ModelCase.make`."""
    model = case.make(precode=precode, dtype=settings.pop("dtype", torch.float32))
    return make_victim(model, case.shape, **settings)


def several_steps(victim: Victim, *, batch_size: int, epochs: int) -> Victim:
    """The same client, who takes some steps of torch's SGD and sends weights."""
    facts, inputs, labels = victim.knowledge, victim.truth.inputs, victim.truth.labels
    model = copy.deepcopy(facts.model)
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=RATE)
    drawn: dict[str, list[Tensor]] = {}
    with torch.random.fork_rng():
        torch.manual_seed(11)
        for _ in range(epochs):
            with record(model) as notes:
                for batch in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
                    optimizer.zero_grad()
                    batch_loss(model, batch).backward()
                    optimizer.step()
            for slot, values in notes.items():
                drawn.setdefault(slot, []).append(torch.cat(values))
    noise = {s: torch.stack(v, dim=1) if epochs > 1 else v[0] for s, v in drawn.items()}
    received = {name: value.detach() for name, value in model.state_dict().items()}
    steps = epochs * math.ceil(len(inputs) / batch_size)
    return Victim(
        replace(victim.update, protocol="fedavg", received=received),
        replace(
            facts, protocol="fedavg", learning_rate=RATE, local_steps=steps, batch_size=batch_size
        ),
        replace(victim.truth, noise=noise),
    )


def smooth_victim() -> Victim:
    """A client of DLG's own setting: sigmoid, weights from (-0.5, 0.5)."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LeNet(input_shape=(1, 8, 8), num_classes=CLASSES)
        for value in model.parameters():
            nn.init.uniform_(value, -0.5, 0.5)
    return make_victim(model, (1, 8, 8))
