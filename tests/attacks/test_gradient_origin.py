"""Updates by every optimiser that is known: what comes out of them, of one step and of several."""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from skimage import data as pictures
from skimage.metrics import structural_similarity
from skimage.transform import resize
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks import IGA
from fedleak.attacks.analytic import Analytic
from fedleak.attacks.base import Attack, Reconstruction
from fedleak.attacks.exact_nra import RGAP
from fedleak.attacks.gradient_origin import UNKNOWN, adds_up
from fedleak.errors import BadInput
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.update import InterceptedUpdate

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Batch = tuple[Tensor, Tensor]


def astronaut(side: int) -> Tensor:
    face = resize(pictures.astronaut()[0:200, 120:320], (side, side))
    return torch.tensor(face, dtype=torch.float32).permute(2, 0, 1)[None]


IMAGE, LABEL = astronaut(16), torch.tensor([1])


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def convolutional(classes: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 12, 5, 2, 2), nn.Sigmoid(), nn.Conv2d(12, 12, 5, 1, 2), nn.Sigmoid(),
            nn.Flatten(), nn.Linear(12 * 64, classes),
        )  # fmt: skip


def perceptron() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(768, 64), nn.Sigmoid(), nn.Linear(64, 2))


def trained(net: nn.Module, steps: int) -> nn.Module:
    """A model that knows a similar picture of the class, so that its gradients are small."""
    optimizer = torch.optim.SGD(net.parameters(), 0.005)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(net, (IMAGE.roll(2, 3) * 0.9, LABEL)).backward()
        optimizer.step()
    return net


def attacked(
    net: nn.Module,
    make: Make,
    facts: LocalTraining,
    attack: Attack,
    *,
    sample: Tensor = IMAGE,
    labels: Tensor | None = LABEL,
    loss: Callable[[Any, Any], Tensor] = cross_entropy,
    classes: int = 2,
) -> Reconstruction:
    """The attack on the weights of a client who has taken steps with torch's own optimiser."""
    own = copy.deepcopy(net)
    optimizer = make(own.parameters())
    for _ in range(facts.steps or 1):
        optimizer.zero_grad()
        loss(own, (sample, LABEL)).backward()
        optimizer.step()
    sent, received = (
        {name: value.clone() for name, value in model.state_dict().items()} for model in (net, own)
    )
    update = InterceptedUpdate(1, 0, "fedavg", 1, "net", sent, received)
    known = Knowledge(
        net, tuple(sample.shape[1:]), classes, num_samples=1, labels=labels, protocol="fedavg",
        local_training=facts, loss=loss,
    )  # fmt: skip
    (result,) = attack([update], known)
    return result


def mse(result: Reconstruction, sample: Tensor = IMAGE) -> float:
    return float((result.inputs - sample).square().mean())


def ssim(result: Reconstruction) -> float:
    one, other = (value[0].permute(1, 2, 0).numpy() for value in (result.inputs, IMAGE))
    return float(structural_similarity(one, other, channel_axis=2, data_range=1.0))


# ------------------------------------------------------------------------ one step of SGD is exact

SGD: list[tuple[dict[str, Any], int]] = [
    ({}, 0),
    ({"momentum": 0.9}, 0),
    ({"momentum": 0.9, "dampening": 0.5}, 0),
    ({"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}, 0),
    ({"weight_decay": 5e-4}, 0),
    ({"weight_decay": 1e-2}, 0),
    ({"weight_decay": 5e-4}, 40),
    ({"weight_decay": 1e-2}, 40),
    ({"weight_decay": 1e-2, "maximize": True}, 0),
]


@pytest.mark.parametrize(("settings", "before"), SGD[1:4:2] + SGD[-3:-1], ids=str)
def test_one_step_of_sgd_is_exact(settings: dict[str, Any], before: int) -> None:
    net = trained(convolutional(10), before)
    result = attacked(
        net, lambda p: torch.optim.SGD(p, lr=0.05, **settings),
        LocalTraining(learning_rate=0.05, **settings), IGA(iterations=150, learning_rate=0.05),
        labels=None, classes=10,
    )  # fmt: skip
    assert result.labels.tolist() == [1]
    assert mse(result) < 1e-3
    assert result.explained > 0.99


@pytest.mark.parametrize(("settings", "before"), SGD, ids=str)
@pytest.mark.parametrize("attack", [Analytic(), RGAP()], ids=lambda attack: attack.name)
def test_closed_forms_of_one_step_of_sgd(
    attack: Attack, settings: dict[str, Any], before: int
) -> None:
    result = attacked(
        trained(perceptron(), before), lambda p: torch.optim.SGD(p, lr=0.05, **settings),
        LocalTraining(learning_rate=0.05, **settings), attack,
    )  # fmt: skip
    assert mse(result) < 1e-3
    assert result.explained > 0.99


def test_rgap_of_a_convolution_with_weight_decay() -> None:
    result = attacked(
        convolutional(10), lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=5e-4),
        LocalTraining(learning_rate=0.05, weight_decay=5e-4), RGAP(), classes=10,
    )  # fmt: skip
    assert mse(result) < 1e-3
    assert result.explained > 0.99


# ---------------------------------------------------------------- one step of Adam and its kin


ADAM = [
    (LocalTraining(optimizer="adam", learning_rate=1e-3), torch.optim.Adam, {}),
    (
        LocalTraining(optimizer="adamw", learning_rate=1e-3, weight_decay=0.01),
        torch.optim.AdamW,
        {"weight_decay": 0.01},
    ),
    (LocalTraining(optimizer="rmsprop", learning_rate=1e-3), torch.optim.RMSprop, {}),
]


@pytest.mark.parametrize(("facts", "kind", "settings"), ADAM, ids=str)
def test_one_step_of_adam(facts: LocalTraining, kind: Any, settings: dict[str, Any]) -> None:
    result = attacked(
        convolutional(2), lambda p: kind(p, 1e-3, **settings), facts,
        IGA(iterations=80, learning_rate=0.05, total_variation=1e-5), labels=None,
    )  # fmt: skip
    assert result.labels.tolist() == [1]
    assert ssim(result) >= 0.6
    assert result.explained > 0.8
    assert any(f"one step of {facts.optimizer}" in finding for finding in result.findings)


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 3))
        self.up = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 784))


def reconstruction_error(model: Any, batch: Batch) -> Tensor:
    flat = batch[0].flatten(1)
    return functional.mse_loss(model.up(model.down(flat)), flat)


CAMERA = torch.tensor(
    resize(pictures.camera()[100:212, 170:282], (28, 28)), dtype=torch.float32
)[None, None]  # fmt: skip


@pytest.mark.parametrize(
    "attack",
    [
        Analytic(),
        RGAP(),
        pytest.param(IGA(iterations=300, learning_rate=0.03), marks=pytest.mark.slow),
    ],
    ids=lambda attack: attack.name,
)
def test_one_step_of_adam_on_an_autoencoder(attack: Attack) -> None:
    torch.manual_seed(0)
    result = attacked(
        Autoencoder(), lambda p: torch.optim.Adam(p, 1e-3), ADAM[0][0], attack,
        sample=CAMERA, loss=reconstruction_error, classes=10,
    )  # fmt: skip
    assert mse(result, CAMERA) < 1e-3
    assert result.explained > 0.5


def test_closed_forms_that_need_more_than_signs_leave_them_to_matching() -> None:
    result = attacked(
        convolutional(2), lambda p: torch.optim.Adam(p, 1e-3), ADAM[0][0], RGAP(nra_iterations=3)
    )
    assert "the equations of the layers need the gradient itself" in result.findings
    assert result.findings[-2] == "fallback to nra" or "fallback to nra" in result.findings
    assert any("not supported by the update" in finding for finding in result.findings)


# ------------------------------------------------------------------------------- several steps


@pytest.mark.parametrize("attack", [Analytic(), RGAP()], ids=lambda attack: attack.name)
@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.9}, {"momentum": 0.9, "weight_decay": 1e-2}], ids=str
)
def test_steps_of_sgd_on_one_image_add_up(attack: Attack, settings: dict[str, Any]) -> None:
    result = attacked(
        perceptron(), lambda p: torch.optim.SGD(p, lr=0.05, **settings),
        LocalTraining(learning_rate=0.05, steps=3, **settings), attack,
    )  # fmt: skip
    assert mse(result) < 1e-3
    assert result.explained > 0.99


def test_steps_that_do_not_add_up_are_refused_in_closed_form() -> None:
    facts = LocalTraining(optimizer="adam", learning_rate=1e-3, steps=3)
    with pytest.raises(BadInput, match="sum of the gradients of 1, and 3 local steps of adam do"):
        attacked(perceptron(), lambda p: torch.optim.Adam(p, 1e-3), facts, Analytic())


def test_what_adds_up() -> None:
    plain = LocalTraining(learning_rate=0.1, momentum=0.9)
    assert adds_up(plain, "1")
    decayed = LocalTraining(weight_decay=0.1, per_parameter={"*.bias": {"weight_decay": 0.0}})
    assert adds_up(decayed, "1")
    other = LocalTraining(learning_rate=0.1, per_parameter={"*.bias": {"learning_rate": 0.2}})
    assert not adds_up(other, "1")
    assert not adds_up(LocalTraining(optimizer="adam"), "1")
    assert not adds_up(LocalTraining(optimizer="unknown"), "1")


# ------------------------------------------------------------------------ an unknown optimiser


@pytest.mark.parametrize(
    "attack", [Analytic(), RGAP(), IGA(iterations=2)], ids=lambda attack: attack.name
)
def test_an_unknown_optimiser_is_said(attack: Attack) -> None:
    result = attacked(
        perceptron(), lambda p: torch.optim.SGD(p, lr=0.05),
        LocalTraining(optimizer="unknown", learning_rate=0.05), attack,
    )  # fmt: skip
    assert UNKNOWN + "the clients' optimiser is not known" in result.findings
    assert math.isnan(result.explained)
