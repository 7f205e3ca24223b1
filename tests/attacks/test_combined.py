"""Updates of several clients that came as one, against clients that train with torch."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks import IGA, RGAP, Analytic
from fedleak.attacks.base import _prepare
from fedleak.attacks.combined import TOGETHER
from fedleak.attacks.explained import explained_share
from fedleak.attacks.labels import recover_labels
from fedleak.attacks.matching.costs import COSTS
from fedleak.attacks.matching.local_steps import DummyUpdate, compared_update
from fedleak.errors import BadInput
from fedleak.models.noise import NormalNoise, record
from fedleak.updates.evidence import check
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Aggregation, Knowledge, Protocol
from fedleak.updates.local_training import LocalTraining, OptimizerName
from fedleak.updates.update import InterceptedUpdate

CLASSES = 4


class Noisy(nn.Module):
    """Draws noise of its own between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.noise, self.last = nn.Linear(36, 8), NormalNoise(), nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(inputs.flatten(1)))
        return self.last(hidden + 0.3 * self.noise(hidden))


def smooth_net(*, norm: bool = False) -> nn.Module:
    between = nn.BatchNorm2d(6) if norm else nn.Identity()
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), between, nn.Tanh(), nn.Flatten(), nn.Linear(96, 16), nn.Sigmoid(),
        nn.Linear(16, CLASSES),
    )  # fmt: skip


def loss(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def combined(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    samples: tuple[int, ...],
    kind: Any = torch.optim.SGD,
    settings: dict[str, Any] | None = None,
    *,
    batch_size: int | None = None,
    epochs: int = 1,
    aggregation: Aggregation = "weighted_mean",
    protocol: Protocol = "fedavg",
) -> tuple[InterceptedUpdate, Knowledge, Tensors]:
    """What a server receives of clients who trained copies of a model, and the noise they drew."""
    settings = settings or {"lr": 0.1}
    replies: list[Tensors] = []
    drawn: list[list[Tensor]] = []
    start = 0
    sent = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for number in samples:
        own = copy.deepcopy(model)
        inputs, labels = (values[start : start + number] for values in batch)
        optimizer = kind(own.parameters(), **settings)
        with record(own) as notes:
            for _ in range(epochs):
                for at in range(0, number, batch_size or number):
                    part = slice(at, at + (batch_size or number))
                    optimizer.zero_grad()
                    loss(own, (inputs[part], labels[part])).backward()
                    if protocol != "fedsgd":
                        optimizer.step()
        drawn.append([value for values in notes.values() for value in values])
        if protocol == "fedsgd":
            reply = {n: v.grad for n, v in own.named_parameters() if v.grad is not None}
        else:
            old = 0.0 if protocol == "fedavg" else 1.0
            reply = {n: v.detach() - old * sent[n] for n, v in own.named_parameters()}
        replies.append(reply)
        start += number
    total = sum(samples) if aggregation == "weighted_mean" else len(samples)
    received = {
        name: sum(
            (number if aggregation == "weighted_mean" else 1)
            / (1 if aggregation == "sum" else total)
            * reply[name]
            for number, reply in zip(samples, replies, strict=True)
        )
        for name in replies[0]
    }
    names: dict[Any, OptimizerName] = {
        torch.optim.SGD: "sgd", torch.optim.Adam: "adam", torch.optim.AdamW: "adamw",
    }  # fmt: skip
    told = {"learning_rate" if n == "lr" else n: value for n, value in settings.items()}
    facts = Knowledge(
        model, tuple(batch[0].shape[1:]), CLASSES, num_samples=sum(samples), labels=batch[1],
        protocol=protocol, loss=loss,
        local_training=LocalTraining(
            optimizer=names[kind], batch_size=batch_size, epochs=epochs, **told
        ),
        clients=samples if len(set(samples)) > 1 else len(samples), aggregation=aggregation,
    )  # fmt: skip
    update = InterceptedUpdate(1, 0, protocol, sum(samples), "toy", sent, received)  # type: ignore[arg-type]
    noise: Tensors = {}
    if drawn[0]:
        each = [torch.stack(own, dim=1) if epochs > 1 else torch.cat(own) for own in drawn]
        noise = {"noise": torch.cat(each)}
    return update, facts, noise


def batch_of(
    samples: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.rand(samples, 1, 6, 6, dtype=dtype), torch.arange(samples) * 2 % CLASSES


def cosine(
    update: InterceptedUpdate, facts: Knowledge, batch: tuple[Tensor, Tensor], noise: Tensors
) -> float:
    """Between what came and what is simulated of the truth."""
    update, facts = update.as_mean(facts)
    problem = _prepare(update, facts, 0, "cpu", [])
    model = copy.deepcopy(problem.model)
    dummy = DummyUpdate(model, problem.knowledge, batch, noise)
    wanted = compared_update(problem)
    target = {n: tuple(v[0] for v in found) for n, found in dummy.targets([wanted], 6).items()}
    products, _, _ = dummy.evaluate(*batch, noise, target)
    for name, (inner, ours, theirs) in products.items():  # in size, too
        assert float(ours - 2 * inner + theirs) <= 1e-4 * float(theirs), name
    return float(1 - COSTS["cosine"](products))


OPTIMISERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    (torch.optim.Adam, {"lr": 1e-2}),
    (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
]
# Samples of each client, of a batch, epochs, how they are combined, and what is sent.
LAYOUTS: list[tuple[tuple[int, ...], int | None, int, Aggregation, Protocol]] = [
    ((1, 1), None, 3, "weighted_mean", "fedavg"),
    ((2, 2, 2), 1, 2, "sum", "delta"),
    ((3, 1, 2), 2, 2, "weighted_mean", "fedavg"),
    ((3, 1, 2), 2, 2, "mean", "delta"),
    ((2, 2), None, 1, "weighted_mean", "fedavg"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("kind", "settings"), OPTIMISERS, ids=str)
def test_what_a_server_receives(
    kind: Any, settings: dict[str, Any], layout: Any, dtype: torch.dtype
) -> None:
    samples, batch_size, epochs, aggregation, protocol = layout
    batch = batch_of(sum(samples), dtype)
    model = smooth_net().to(dtype)
    update, facts, _ = combined(
        model, batch, samples, kind, settings,
        batch_size=batch_size, epochs=epochs, aggregation=aggregation, protocol=protocol,
    )  # fmt: skip
    assert cosine(update, facts, batch, {}) > 0.9999
    mean, known = update.as_mean(facts)
    found = explained_share(mean, known, *batch, {})
    assert found.share > 0.999
    assert found.factor == pytest.approx(1, abs=1e-3)
    assert not check(model, update, facts)


def test_noise_of_every_client_and_step() -> None:
    batch = batch_of(4)
    model = Noisy().double()
    update, facts, noise = combined(model, batch, (1, 3), batch_size=3, epochs=2)
    assert noise["noise"].shape == (4, 2, 8)
    assert cosine(update, facts, batch, noise) > 0.9999
    assert explained_share(update, facts, *batch, noise).share > 0.999


@pytest.mark.parametrize("aggregation", ["weighted_mean", "sum"])
def test_the_mean_of_gradients_is_that_of_all_samples(aggregation: Aggregation) -> None:
    """Every attack works on it as on a batch, the closed form too; a sum is scaled."""
    batch = batch_of(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.Sigmoid(), nn.Linear(20, 4)).double()
    update, facts, _ = combined(model, batch, (1, 1, 1), aggregation=aggregation, protocol="fedsgd")
    (found,) = RGAP()([update], facts)
    assert found.findings[0] == TOGETHER
    gradient = torch.autograd.grad(loss(model, batch), list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    whole = replace(update, received=dict(zip(names, gradient, strict=True)))
    (wanted,) = RGAP()([whole], replace(facts, clients=1))
    torch.testing.assert_close(found.inputs, wanted.inputs, rtol=0, atol=1e-4)
    assert found.explained > 0.999
    if aggregation == "sum":
        (wrong,) = RGAP()([update], replace(facts, aggregation="mean"))
        assert "the update is 3 times as large as that of the reconstruction" in wrong.findings[-1]


def class_weights(model: nn.Module, batch: Any) -> Tensor:
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=batch[0].dtype)
    return functional.cross_entropy(model(batch[0]), batch[1], weight=weight)


def test_batch_norm_sees_each_clients_own_batch() -> None:
    batch = batch_of(4)
    model = smooth_net(norm=True).double().train()
    update, facts, _ = combined(model, batch, (2, 2), protocol="fedsgd")
    assert cosine(update, facts, batch, {}) > 0.9999
    known = replace(facts, training=True)
    assert explained_share(update, known, *batch, {}).share > 0.999
    assert explained_share(update, replace(known, clients=1), *batch, {}).share < 0.99
    (found,) = IGA(iterations=1)([update], known)
    assert found.findings[0].startswith("gradients of 2 clients simulated one by one")
    assert TOGETHER not in found.findings
    # In eval mode it does not depend on the batch.
    still, facts, _ = combined(model.eval(), batch, (2, 2), protocol="fedsgd")
    assert IGA(iterations=1)([still], facts)[0].findings[0] == TOGETHER


@pytest.mark.parametrize("known", [True, False])
def test_class_weights_are_of_each_clients_own_batch(
    monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setitem(globals(), "loss", class_weights)
    batch = batch_of(2)
    update, facts, _ = combined(smooth_net().double(), batch, (1, 1), protocol="fedsgd")
    labels = batch[1] if known else None
    (found,) = IGA(iterations=1)([update], replace(facts, labels=labels))
    assert "gradients of 2 clients simulated one by one" in found.findings[0]


def test_an_attack_finds_the_images_of_all_clients() -> None:
    batch = batch_of(2)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 8), nn.Sigmoid(), nn.Linear(8, 4)
    ).double()
    update, facts, _ = combined(model, batch, (1, 1), settings={"lr": 0.5}, epochs=3)
    facts = replace(facts, labels=None)
    attack = IGA(iterations=80, learning_rate=0.05, total_variation=0.0)
    (found,) = attack([update], facts)
    assert found.findings == ("3 local steps of each of 2 clients simulated: 3 epochs of 1 batch",)
    assert found.labels.tolist() == [0, 2] == batch[1].tolist()
    error = (found.inputs - batch[0]).square().mean(dim=(1, 2, 3))
    assert float(error.max()) < 1e-2 * float(batch[0].var())
    assert found.explained > 0.999
    # Told that it is one client who took six steps, it is not supported by the update.
    one = replace(facts, clients=1).with_training(steps=6, epochs=None, batch_size=1)
    (other,) = attack([update], one)
    assert not other.supported


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_one_step_of_several_clients(kind: Any) -> None:
    """Of SGD it is the gradient of all samples; the mean of steps of Adam has no inverse."""
    batch = batch_of(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.Sigmoid(), nn.Linear(20, 4)).double()
    update, facts, _ = combined(model, batch, (2, 2), kind, {"lr": 1e-3})
    (found,) = IGA(iterations=1)([update], replace(facts, labels=None))
    if kind is torch.optim.SGD:
        assert found.findings[0] == TOGETHER
        assert found.labels.tolist() == [0, 0, 2, 2]
    else:
        assert found.findings[0] == "1 local step of each of 2 clients simulated"
        assert found.findings[1] == "which client has which of the labels is not known"
    (solved,) = RGAP(joint_steps=2, nra_iterations=2)([update], facts)
    assert (TOGETHER in solved.findings) is (kind is torch.optim.SGD)
    with pytest.raises(BadInput, match="analytic takes one sample and the update is of 4"):
        Analytic()([update], facts)


@pytest.mark.parametrize("samples", [(1, 1, 1, 1), (4,)])
@pytest.mark.parametrize("labels", [[1, 1, 3, 3], [2, 2, 2, 2], [0, 1, 1, 3]])
def test_labels_that_a_model_learns_over_several_epochs(
    samples: tuple[int, ...], labels: list[int]
) -> None:
    """The later the epoch, the less a label lowers the gradient of its class."""
    batch = batch_of(4)[0], torch.tensor(labels)
    update, facts, _ = combined(
        smooth_net().double(), batch, samples, settings={"lr": 0.5}, epochs=4, protocol="delta",
        batch_size=max(samples),
    )  # fmt: skip
    problem = _prepare(update, replace(facts, labels=None), 0, "cpu", [])
    gradient, known = problem.gradient, problem.knowledge
    assert recover_labels(problem.model, gradient, known, problem.loss).tolist() == labels


def test_a_sum_of_weights_is_refused() -> None:
    update, facts, _ = combined(smooth_net(), batch_of(2, torch.float32), (1, 1))
    with pytest.raises(BadInput, match="got a sum of the weights of 2 clients: divide it by their"):
        IGA(iterations=1)([update], replace(facts, aggregation="sum"))


def test_what_the_update_is_marked_as_is_compared() -> None:
    update, facts, _ = combined(smooth_net(), batch_of(2, torch.float32), (1, 1), epochs=2)
    (found,) = IGA(iterations=1)([replace(update, clients=3)], facts)
    assert found.findings[0] == "2 clients told, the update is marked as of 3"


def test_labels_of_a_plain_mean_of_uneven_clients() -> None:
    batch = batch_of(3, torch.float32)
    update, facts, _ = combined(smooth_net(), batch, (1, 2), aggregation="mean", protocol="delta")
    (found,) = IGA(iterations=1)([update], replace(facts, labels=None))
    assert found.findings[0] == "1 local step of each of 2 clients simulated"
    assert found.findings[1].startswith("which client has which")
    assert found.findings[2].startswith("labels counted as if all samples weighed alike")


def test_clients_that_took_too_many_steps_are_averaged() -> None:
    update, facts, _ = combined(smooth_net(), batch_of(4, torch.float32), (2, 2), epochs=17,
                                batch_size=2)  # fmt: skip
    (found,) = IGA(iterations=1)([update], facts)
    assert found.findings[0].startswith(
        "mean gradient of 17 local steps of each of 2 clients attacked, as more than 32"
    )
