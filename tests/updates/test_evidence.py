"""What an update itself tells: a finding for each fact told wrong, and none where all is right."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    mse_loss,
)

from fedleak.attacks.explained import explained_share
from fedleak.updates.evidence import check, examine
from fedleak.updates.knowledge import Knowledge, batch_loss
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.update import InterceptedUpdate
from tests.cases import (
    LIGHT_MODELS,
    ModelCase,
    Victim,
    case_victim,
    make_victim,
    several_steps,
)

SHAPE, CLASSES, RATE = (1, 8, 8), 5, 0.05


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 40), nn.Sigmoid(), nn.Linear(40, 32), nn.Sigmoid(),
            nn.Linear(32, CLASSES),
        )  # fmt: skip


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def samples(number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(number, *SHAPE, generator=generator), torch.arange(number) % CLASSES


def trained(
    make: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    *,
    number: int = 2,
    steps: int = 1,
    protocol: str = "fedavg",
    net: nn.Module | None = None,
    told: dict[str, Any] | None = None,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    **options: Any,
) -> tuple[nn.Module, InterceptedUpdate, Knowledge]:
    """A client that takes steps on one batch, and what the server is told of it."""
    net = network() if net is None else net
    own = copy.deepcopy(net)
    moving = [value for value in own.parameters() if value.requires_grad]
    optimizer = make(moving, lr=RATE, **options)
    batch = samples(number)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(own, batch).backward()
        optimizer.step()
    sent = {name: value.clone() for name, value in net.state_dict().items()}
    received = {name: value.clone() for name, value in own.state_dict().items()}
    if protocol == "delta":
        received = {name: value - sent[name] for name, value in received.items()}
    if protocol == "fedsgd":
        found = torch.autograd.grad(loss(net, batch), list(net.parameters()))
        received = {n: g for (n, _), g in zip(net.named_parameters(), found, strict=True)}
    if change is not None:
        received = change(received)
    update = InterceptedUpdate(1, 0, protocol, number, "net", sent, received)  # type: ignore[arg-type]
    facts = {"learning_rate": RATE, "steps": steps} | (told or {})
    knowledge = Knowledge(
        net, SHAPE, CLASSES, num_samples=number, protocol=protocol, loss=loss,  # type: ignore[arg-type]
        local_training=LocalTraining(**facts),
    )  # fmt: skip
    return net, update, knowledge


def kinds(made: tuple[nn.Module, InterceptedUpdate, Knowledge]) -> set[str]:
    return {finding.kind for finding in check(*made)}


def times(factor: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda received: {name: factor * value for name, value in received.items()}


HONEST: list[tuple[str, dict[str, Any]]] = [
    ("gradient", {"protocol": "fedsgd"}),
    ("one step", {}),
    ("delta", {"protocol": "delta"}),
    ("four samples", {"number": 4}),
    ("three steps", {"steps": 3}),
    ("momentum", {"momentum": 0.9, "steps": 3, "told": {"momentum": 0.9}}),
    ("nesterov", {
        "momentum": 0.9, "nesterov": True, "told": {"momentum": 0.9, "nesterov": True},
    }),
    ("decay", {"weight_decay": 0.1, "told": {"weight_decay": 0.1}}),
    ("adam", {"make": torch.optim.Adam, "told": {"optimizer": "adam"}}),
    ("adam, three steps", {"make": torch.optim.Adam, "steps": 3, "told": {"optimizer": "adam"}}),
    ("adamw", {
        "make": torch.optim.AdamW, "told": {"optimizer": "adamw", "weight_decay": 0.01},
    }),
    ("rmsprop", {"make": torch.optim.RMSprop, "told": {"optimizer": "rmsprop"}}),
    ("rmsprop, centred, momentum", {
        "make": torch.optim.RMSprop, "centered": True, "momentum": 0.9,
        "told": {"optimizer": "rmsprop", "centered": True, "momentum": 0.9},
    }),
    ("adam, decay and amsgrad", {
        "make": torch.optim.Adam, "weight_decay": 0.1, "amsgrad": True,
        "told": {"optimizer": "adam", "weight_decay": 0.1, "amsgrad": True},
    }),
    ("decay over three steps", {
        "weight_decay": 0.5, "steps": 3, "told": {"weight_decay": 0.5},
    }),
    ("adagrad", {"make": torch.optim.Adagrad, "told": {"optimizer": "adagrad"}}),
]  # fmt: skip


@pytest.mark.parametrize("settings_", [s for _, s in HONEST], ids=[name for name, _ in HONEST])
def test_nothing_is_amiss_where_all_is_as_told(settings_: dict[str, Any]) -> None:
    assert check(*trained(**settings_)) == []


@pytest.mark.parametrize("protocol", ["fedavg", "delta"])
def test_steps_of_adam_with_rounded_weights_are_not_quantised(protocol: str) -> None:
    """The differences take few values where the weights' rounding is coarse beside the rate."""
    net = network()
    with torch.no_grad():
        for value in net.parameters():
            value.add_(10.0)
    made = trained(
        torch.optim.Adam, protocol=protocol, net=net,
        told={"optimizer": "adam", "learning_rate": RATE},
    )  # fmt: skip
    assert "levels" not in kinds(made)


@pytest.mark.parametrize("precode", [False, True], ids=["plain", "precode"])
@pytest.mark.parametrize("case", LIGHT_MODELS, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_no_false_alarm_on_the_models(case: ModelCase, precode: bool, batch: int) -> None:
    victim = case_victim(case, precode=precode, batch=batch)
    steps = several_steps(victim, batch_size=1, epochs=2)
    for update, knowledge, _ in (victim, steps):
        assert check(knowledge.model, update, knowledge) == []


def rounded(received: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.half().float() for name, value in received.items()}


def frozen_first() -> nn.Module:
    net = network()
    net[1].requires_grad_(False)
    return net


WRONG: list[tuple[str, str, dict[str, Any]]] = [
    ("rank", "more samples than told", {"number": 6, "protocol": "fedsgd", "samples": 2}),
    ("adam", "Adam told as SGD", {"make": torch.optim.Adam}),
    ("adam", "AdamW told as SGD", {"make": torch.optim.AdamW, "weight_decay": 0.0}),
    ("rate", "Adam's rate told wrong", {
        "make": torch.optim.Adam, "told": {"optimizer": "adam", "learning_rate": 0.01},
    }),
    ("rate", "Adam's rate told too large", {
        "make": torch.optim.Adam, "told": {"optimizer": "adam", "learning_rate": 0.1},
    }),
    ("rate", "RMSprop told as Adam", {
        "make": torch.optim.RMSprop, "told": {"optimizer": "adam"},
    }),
    ("rate", "Adagrad told as RMSprop", {
        "make": torch.optim.Adagrad, "told": {"optimizer": "rmsprop"},
    }),
    ("rate", "AdamW's decay told wrong", {
        "make": torch.optim.AdamW, "weight_decay": 0.01,
        "told": {"optimizer": "adamw", "weight_decay": 2.0},
    }),
    ("rate", "three steps of Adam told as one", {
        "make": torch.optim.Adam, "steps": 3, "told": {"optimizer": "adam", "steps": 1},
    }),
    ("protocol", "a delta told as weights", {"protocol": "delta", "as": "fedavg"}),
    ("protocol", "a gradient told as weights", {"protocol": "fedsgd", "as": "fedavg"}),
    ("protocol", "weights told as a delta", {"as": "delta"}),
    ("protocol", "weights told as a gradient", {"as": "fedsgd"}),
    ("signs", "signs", {
        "protocol": "fedsgd", "change": lambda r: {n: v.sign() * 0.1 for n, v in r.items()},
    }),
    ("integers", "whole numbers", {
        "protocol": "fedsgd", "change": lambda r: {n: (v * 1e4).round() for n, v in r.items()},
    }),
    ("levels", "16 levels", {
        "protocol": "fedsgd",
        "change": lambda r: {
            n: (v / v.abs().max() * 7).round() / 7 * v.abs().max() for n, v in r.items()
        },
    }),
    ("sparse", "the largest tenth", {
        "protocol": "fedsgd",
        "change": lambda r: {
            n: v * (v.abs() >= v.abs().flatten().quantile(0.9)) for n, v in r.items()
        },
    }),
    ("precision", "half precision", {"protocol": "fedsgd", "change": rounded}),
    ("zero", "nothing changed", {"change": lambda _: dict(network().state_dict())}),
    ("frozen", "a layer that did not move", {
        "change": lambda r: r | {n: v for n, v in network().state_dict().items() if n[0] == "1"},
    }),
    ("missing", "part of the weights", {
        "change": lambda r: {n: v for n, v in r.items() if n[0] == "1"},
    }),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings_"), [(k, s) for k, _, s in WRONG], ids=[name for _, name, _ in WRONG]
)
def test_a_fact_told_wrong_is_found(kind: str, settings_: dict[str, Any]) -> None:
    settings_ = dict(settings_)
    told_protocol, number = settings_.pop("as", None), settings_.pop("samples", None)
    net, update, knowledge = trained(**settings_)
    if told_protocol is not None:
        update = replace(update, protocol=told_protocol)
    if number is not None:
        knowledge = replace(knowledge, num_samples=number)
    assert kind in kinds((net, update, knowledge))


def test_weight_decay_shows_in_rows_without_a_gradient() -> None:
    net = network()
    with torch.no_grad():
        net[3].weight[:, 5] = 0.0
        # Unit 5 of the first layer reaches nothing: its row moves by the decay alone.
    made = trained(weight_decay=0.1, net=net)
    (found,) = [finding for finding in check(*made) if finding.kind == "decay"]
    assert "0.005" in found.text  # rate 0.05 times decay 0.1
    assert "decay of 0.1" in found.text
    assert "decay" not in kinds(trained(weight_decay=0.1, net=net, told={"weight_decay": 0.1}))


def test_frozen_parameters_are_left_out_and_named() -> None:
    net = frozen_first()
    _, update, knowledge = trained(net=net)
    evidence = examine(update, knowledge)
    assert evidence.left_out == {"1.weight", "1.bias"}
    assert evidence.findings == ()
    forgotten = replace(knowledge, model=network())
    evidence = examine(update, forgotten)
    assert evidence.left_out == {"1.weight", "1.bias"}
    (found,) = evidence.findings
    assert found.text.startswith("`1.weight`, `1.bias` did not move and are left out")


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg", "delta"])
@pytest.mark.parametrize("number", [1, 2])
def test_two_samples_of_one_label_are_not_one(number: int, protocol: str) -> None:
    """Of sigmoids behind a convolution, their gradients differ by 1e-6 of their size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 12, 5, 2, 2), nn.Sigmoid(), nn.Conv2d(12, 12, 5, 1, 2), nn.Sigmoid(),
            nn.Flatten(), nn.Linear(192, 10),
        )  # fmt: skip
    images, labels = samples(2)[0][:number], torch.full((number,), 4)
    own = copy.deepcopy(net)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.3)
    loss(own, (images, labels)).backward()
    optimizer.step()
    given: dict[str, Any] = {"gradient": {n: v.grad for n, v in own.named_parameters()}}
    if protocol == "fedavg":
        given = {"weights": own.state_dict()}
    if protocol == "delta":
        before = net.state_dict()
        given = {"delta": {n: v - before[n] for n, v in own.state_dict().items()}}
    update = InterceptedUpdate.of(net, **given)
    facts = Knowledge(net, SHAPE, num_samples=1, loss=loss, learning_rate=0.3)
    assert kinds((net, update, facts)) == ({"rank"} if number == 2 else set())


class Penalised(nn.Module):
    """A network whose own loss has a penalty on its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        penalty = sum(value.square().sum() for value in self.parameters())
        return functional.cross_entropy(self.net(batch[0]), batch[1]) + 0.01 * penalty


class Tied(nn.Module):
    """A language model whose output layer has the weight of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 32)
        self.out = nn.Linear(32, 40, bias=False)
        self.out.weight = self.embed.weight

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens = batch[0].long()
        hidden = self.embed(tokens[:, :-1]).tanh()
        return functional.cross_entropy(self.out(hidden).flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("kind", [Penalised, Tied])
def test_a_weight_that_the_loss_takes_in_another_way_too(kind: type[nn.Module]) -> None:
    """Its gradient is of a higher rank than the layer's inputs, with all told right."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind()
    shape = (6,) if kind is Tied else SHAPE
    inputs = torch.tensor([[3, 17, 4, 9, 21, 30]]) if kind is Tied else samples(1)[0]
    found = torch.autograd.grad(
        batch_loss(model, (inputs, torch.tensor([0]))), list(model.parameters())
    )
    update = InterceptedUpdate.of(model, gradient=found)
    facts = Knowledge(model, shape, num_samples=1, labels=torch.tensor([0]))
    assert check(model, update, facts) == []
    if kind is Penalised:
        # Where the penalty is not told, that is found.
        plain = replace(facts, loss=lambda own, batch: loss(own.net, batch))
        assert {finding.kind for finding in check(model, update, plain)} == {"rank"}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    honest=st.sampled_from([s for _, s in HONEST if "make" not in s and "steps" not in s]),
    wrong=st.sampled_from(["samples", "protocol", "steps", "zero"]),
    number=st.integers(1, 3),
)
def test_one_fact_told_wrong_at_a_time_is_found(
    honest: dict[str, Any], wrong: str, number: int
) -> None:
    made = {"number": number} | honest
    if wrong == "samples":
        net, update, knowledge = trained(**made | {"number": 2 * number + 2})
        knowledge = replace(knowledge, num_samples=number)
    elif wrong == "steps":
        # Four steps on a batch look like one of another rate: a reconstruction, even the truth,
        # tells by the size or by the direction of its update.
        made = {n: v for n, v in made.items() if n != "protocol"}
        net, update, knowledge = trained(**made | {"steps": 4})
        knowledge = knowledge.with_training(steps=1)
        found = explained_share(update, knowledge, *samples(number), {})
        assert found.findings
        return
    else:
        net, update, knowledge = trained(**made)
        others = {"fedsgd": "fedavg", "fedavg": "delta", "delta": "fedavg"}
        if wrong == "protocol":
            update = replace(update, protocol=others[update.protocol])  # type: ignore[arg-type]
        else:
            nothing = {
                n: v if update.protocol == "fedavg" else 0 * v for n, v in update.sent.items()
            }
            update = replace(update, received=nothing)
    assert kinds((net, update, knowledge)) - {"frozen"}


# ---------------------------------------------------------------- the bias of the classifier

# The findings about the gradient of the classifier's bias.
OF_THE_BIAS = {"rate", "loss", "counts", "labels"}


def bias_kinds(victim: Victim) -> set[str]:
    return {f.kind for f in check(victim.model, victim.update, victim.knowledge)} & OF_THE_BIAS


def learn(victim: Victim) -> None:
    """Train the client's model on the client's samples."""
    model = victim.model
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        batch_loss(model, (victim.truth.inputs, victim.truth.labels)).backward()
        optimizer.step()


@pytest.mark.parametrize("precode", [False, True], ids=["plain", "precode"])
@pytest.mark.parametrize("case", LIGHT_MODELS, ids=str)
def test_honest_updates_have_no_finding_about_the_bias(case: ModelCase, precode: bool) -> None:
    torch.manual_seed(0)
    model = case.make(precode=precode)
    for labels in ([1], [0, 0, 2, 1]):
        for learned in (False, True):
            victim = make_victim(model, case.shape, batch=len(labels), labels=labels)
            if learned:
                learn(victim)
                victim = make_victim(model, case.shape, batch=len(labels), labels=labels)
            assert not bias_kinds(victim)
            for batch_size, epochs in ((1, 1), (len(labels), 2)):
                assert not bias_kinds(several_steps(victim, batch_size=batch_size, epochs=epochs))


CRITERIA: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "mean": (cross_entropy, 10),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), 10),
    "factor": (lambda outputs, labels: 3 * cross_entropy(outputs, labels), 10),
    "weights": (nn.CrossEntropyLoss(torch.linspace(0.2, 4, 10)), 10),
    "weights, sum": (nn.CrossEntropyLoss(torch.linspace(0.2, 4, 10), reduction="sum"), 10),
    "smoothing": (nn.CrossEntropyLoss(label_smoothing=0.2), 10),
    "binary": (lambda z, y: binary_cross_entropy_with_logits(z.squeeze(1), (y % 2).to(z)), 1),
    "own sigmoid": (
        lambda z, y: binary_cross_entropy(z.sigmoid().squeeze(1), (y % 2).to(z)), 1
    ),
    "regression": (lambda z, y: mse_loss(z.squeeze(1), y.to(z)), 1),
}  # fmt: skip
LABELS = torch.tensor([3, 3, 1, 7, 7, 7, 0, 9])


def sgd_client(
    name: str, *, rate: float, size: int = 8, epochs: int = 1, learned: int = 0
) -> tuple[nn.Module, Any, InterceptedUpdate]:
    """A client of torch's SGD on eight samples, of a model that has learned them for some steps."""
    criterion, outputs = CRITERIA[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 64), nn.Sigmoid(), nn.Linear(64, outputs))
    inputs = torch.randn(8, 30)

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return criterion(module(batch[0]), batch[1])

    def train(optimizer: torch.optim.Optimizer, module: nn.Module, size: int, epochs: int) -> None:
        for _ in range(epochs):
            for part in torch.randperm(8).split(size):
                optimizer.zero_grad()
                loss(module, (inputs[part], LABELS[part])).backward()
                optimizer.step()

    train(torch.optim.Adam(model.parameters(), 0.02), model, 8, learned)
    own = copy.deepcopy(model)
    train(torch.optim.SGD(own.parameters(), rate), own, size, epochs)
    return model, loss, InterceptedUpdate.of(model, weights=own.state_dict(), num_examples=8)


def bias_findings(update: tuple[nn.Module, Any, InterceptedUpdate], **told: Any) -> set[str]:
    model, loss, sent_back = update
    labels, samples = told.pop("labels", None), told.pop("num_samples", 8)
    facts = Knowledge(
        model, (30,), num_samples=samples, loss=loss, labels=labels,
        local_training=LocalTraining(**told),
    )  # fmt: skip
    return {finding.kind for finding in check(model, sent_back, facts)} & OF_THE_BIAS


@pytest.mark.parametrize("learned", [0, 5, 100])
@pytest.mark.parametrize("name", CRITERIA)
def test_what_is_told_right_has_no_finding(name: str, learned: int) -> None:
    update = sgd_client(name, rate=0.01, learned=learned)
    assert not bias_findings(update, learning_rate=0.01)
    assert not bias_findings(update, learning_rate=0.01, labels=LABELS)
    update = sgd_client(name, rate=0.01, size=2, epochs=3, learned=learned)
    assert not bias_findings(update, learning_rate=0.01, steps=12, batch_size=2)
    assert not bias_findings(update, learning_rate=0.01, steps=12, batch_size=2, labels=LABELS)


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "regression"])
def test_a_rate_that_is_too_small(name: str) -> None:
    update = sgd_client(name, rate=0.1)
    assert "rate" in bias_findings(update, learning_rate=0.002)


def test_the_contradictions_of_told_facts() -> None:
    plain = sgd_client("mean", rate=0.1)
    assert bias_findings(plain, learning_rate=0.01) == {"rate"}
    assert bias_findings(plain, learning_rate=0.1, num_samples=2) == {"counts"}
    wrong = torch.tensor([2, 2, 2, 2, 4, 4, 4, 4])
    assert bias_findings(plain, learning_rate=0.1, labels=wrong) == {"labels"}
    many = sgd_client("mean", rate=0.05, size=8, epochs=3)
    assert bias_findings(many, learning_rate=0.05) == {"rate"}
    short = sgd_client("mean", rate=0.05, size=2)
    assert bias_findings(short, learning_rate=0.05) & {"rate", "counts"}
    # A client of a sum, of which a mean is told.
    model, _, update = sgd_client("sum", rate=0.01)
    _, mean, _ = sgd_client("mean", rate=0.01)
    assert bias_findings((model, mean, update), learning_rate=0.01) == {"rate"}
    model, _, update = sgd_client("mean", rate=0.1)
    moved = dict(update.received)
    moved["2.bias"] = moved["2.bias"] + 0.01
    noisy = InterceptedUpdate.of(model, weights=moved, num_examples=8)
    assert bias_findings((model, mean, noisy), learning_rate=0.1) == {"loss"}


def test_large_numbers_are_not_taken_for_quantised_ones() -> None:
    # In float32 every number above 2^24 is whole.
    for factor in (1e12, 1e30):
        assert kinds(trained(protocol="fedsgd", change=times(factor))) == {"rate"}
    whole = {"protocol": "fedsgd", "change": lambda r: {n: (v * 1e9).round() for n, v in r.items()}}
    assert "integers" in kinds(trained(**whole))


def test_fewer_samples_than_told() -> None:
    for protocol in ("fedsgd", "fedavg", "delta"):
        for true, told in ((1, 2), (1, 4), (2, 3), (2, 4)):
            net, update, facts = trained(number=true, protocol=protocol)
            text = [str(f) for f in check(net, update, replace(facts, num_samples=told))]
            assert text == [
                f"the gradient of `5.weight` has rank {true}, as of {true} sample"
                f"{'s' * (true > 1)}, where {told} were told: fewer samples, equal ones, or ones "
                "that leave less than rounding, as those of one label may"
            ]


def gradient_of(
    net: nn.Module, inputs: Tensor, labels: Tensor, clients: int = 1
) -> tuple[nn.Module, InterceptedUpdate, Knowledge]:
    """The gradient of some samples, or the mean of those of clients with as many each."""
    total = [torch.zeros_like(value) for value in net.parameters()]
    for own, known in zip(inputs.chunk(clients), labels.chunk(clients), strict=True):
        found = torch.autograd.grad(loss(net, (own, known)), list(net.parameters()))
        total = [one + other / clients for one, other in zip(total, found, strict=True)]
    update = InterceptedUpdate.of(net, gradient=total, num_examples=len(inputs))
    shape = tuple(inputs.shape[1:])
    facts = Knowledge(net, shape, num_samples=len(inputs), loss=loss, clients=clients)
    return net, update, facts


def test_equal_samples_are_told() -> None:
    inputs, labels = samples(3)
    inputs, labels = inputs[[0, 1, 0]], labels[[0, 1, 0]]
    found = check(*gradient_of(network(), inputs, labels))
    assert [finding.kind for finding in found] == ["fewer"]
    assert "rank 2, as of 2 samples, where 3 were told" in found[0].text


@pytest.mark.parametrize("labels", [[0, 0], [0, 1], [2, 2, 2], [0, 1, 2, 3], [1, 1, 4, 4]])
@pytest.mark.parametrize("seed", range(3))
def test_samples_that_are_as_many_as_told_have_no_finding(labels: list[int], seed: int) -> None:
    inputs, _ = samples(len(labels), seed)
    known = torch.tensor(labels)
    assert not check(*gradient_of(network(seed), inputs, known))
    if len(labels) != 3:
        assert not check(*gradient_of(network(seed), inputs, known, clients=2))


def test_clients_of_fewer_samples_than_told() -> None:
    inputs, labels = samples(2)
    net, update, facts = gradient_of(network(), inputs, labels, clients=2)
    facts = replace(facts, num_samples=4, clients=2)
    assert [finding.kind for finding in check(net, update, facts)] == ["fewer"]


def test_one_step_of_several_has_the_rank_of_its_batch() -> None:
    net, update, facts = trained(number=2)
    batches = replace(facts, num_samples=4).with_training(batch_size=2, steps=1)
    assert not check(net, update, batches)


class EachPosition(nn.Module):
    """A classifier of each position of a sequence, whose scores are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(inputs).sum(1)


def test_a_layer_that_sees_every_position_has_no_finding() -> None:
    # Positions that are all alike leave a rank of 1.
    inputs = torch.ones(2, 3, 6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = EachPosition()
    assert not check(*gradient_of(net, inputs, torch.tensor([0, 1])))


def test_features_that_depend_on_each_other_have_no_finding() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.BatchNorm1d(9), nn.Linear(9, 5))
    # Of two samples, a batch norm's outputs are each other's opposite: the gradient has rank 1.
    net, update, facts = gradient_of(net, *samples(2))
    assert int(torch.linalg.matrix_rank(update.received["3.weight"])) == 1
    assert "fewer" not in kinds((net, update, replace(facts, training=True)))


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg", "delta"])
def test_a_reversed_sign_is_told(protocol: str) -> None:
    net, update, facts = trained(number=1, protocol=protocol)
    sent = update.sent
    opposite = {
        name: 2 * sent[name] - value if protocol == "fedavg" else -value
        for name, value in update.received.items()
    }
    (found,) = check(net, replace(update, received=opposite), facts)
    assert "with its sign reversed it fits what was told" in found.text
    _, several, _ = trained(number=5, protocol=protocol)
    assert not any("sign" in finding.text for finding in check(net, several, facts))
