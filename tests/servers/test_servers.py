"""Every malicious server: the contract that runs, tables and the documentation rely on."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import pytest
import torch
from torch import Tensor, nn

from fedleak.registry import load_class, names
from fedleak.servers import (
    Bins,
    Fishing,
    Hyperparameters,
    Imprint,
    ImprintModule,
    MaliciousServer,
    SolitonBiases,
    TrapWeights,
)
from fedleak.servers.base import Change
from fedleak.servers.exchanges import Exchanges, check_crafted
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.update import InterceptedUpdate
from tests.cases import pictures
from tests.servers import small_client
from tests.servers.toy_servers import FirstLayer

SHAPE, CLASSES, SAMPLES, PUBLIC = (1, 6, 6), 4, 3, 200


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, CLASSES))


def convolutional() -> nn.Module:
    return small_client.net()


def with_module() -> nn.Module:
    return ImprintModule(units=20).changed_model(convolutional(), small_client.SHAPE)


class Case(NamedTuple):
    """A server with a model that it attacks, and one that it does not; the tests' own among them.

    ``others`` is None if it attacks every model.
    """

    server: MaliciousServer
    model: Callable[[], nn.Module] = perceptron
    others: Callable[[], nn.Module] | None = None
    shape: tuple[int, ...] = SHAPE


CASES = [
    Case(Hyperparameters(rate=1e-3)),
    Case(Hyperparameters(epochs=None, rate_name="lr", batch_name="bs")),
    Case(Bins(steps=0, samples=40), convolutional, others=perceptron, shape=small_client.SHAPE),
    Case(
        Bins(steps=2, samples=40, rate="server"),
        convolutional,
        others=perceptron,
        shape=small_client.SHAPE,
    ),
    *(
        Case(kind(), others=lambda: nn.Conv2d(1, 1, 3))
        for kind in (Imprint, SolitonBiases, TrapWeights)
    ),
    Case(ImprintModule(), with_module, others=convolutional, shape=small_client.SHAPE),
    Case(Fishing(), others=lambda: nn.Conv2d(1, 1, 3)),
    Case(Fishing(steps=2), convolutional, shape=small_client.SHAPE),
    Case(FirstLayer(), others=lambda: nn.Conv2d(1, 1, 3)),
    Case(FirstLayer(rounds=2, features=True), others=lambda: nn.Conv2d(1, 1, 3)),
]


def title(case: Any) -> str | None:
    return repr(case.server) if isinstance(case, Case) else None


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def knowledge(case: Case, model: nn.Module) -> Knowledge:
    return Knowledge(
        model, case.shape, CLASSES, num_samples=SAMPLES, loss=loss,
        local_training=LocalTraining(learning_rate=0.1, batch_size=SAMPLES),
    )  # fmt: skip


def exchanged(case: Case, seed: int = 0) -> tuple[Exchanges, nn.Module]:
    """As many rounds as a server takes, with a client that sends the gradient of its samples."""
    torch.manual_seed(0)
    model = case.model()
    public = pictures(PUBLIC, case.shape, seed=5).float()
    exchanges = Exchanges(
        case.server, lambda update, crafted: knowledge(case, model), public=public, seed=seed
    )
    inputs = pictures(SAMPLES, case.shape, seed=1).float()
    labels = torch.arange(SAMPLES) % CLASSES
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    for round_ in range(1, case.server.rounds + 1):
        exchanges.begin_round(round_)
        expected = InterceptedUpdate(round_, 0, "fedsgd", 0, "net", sent, {})
        crafted = exchanges.craft(expected)
        client = case.model()
        client.load_state_dict(crafted.weights)
        gradient = torch.autograd.grad(loss(client, (inputs, labels)), list(client.parameters()))
        received = {n: g for (n, _), g in zip(client.named_parameters(), gradient, strict=True)}
        exchanges.answered(
            InterceptedUpdate(round_, 0, "fedsgd", SAMPLES, "net", crafted.weights, received)
        )
    return exchanges, model


def test_the_table_has_every_registered_server() -> None:
    registered = {load_class(p.value.replace(":", ".")) for p in names("servers").values()}
    assert registered <= {type(case.server) for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=title)
def test_facts(case: Case) -> None:
    kind = type(case.server)
    for fact in inspect.get_annotations(MaliciousServer):
        if fact != "rounds":  # a hyperparameter of some
            assert getattr(kind, fact) is getattr(case.server, fact)
    for fact in ("name", "paper", "threat_model", "needs"):
        assert getattr(kind, fact).strip() == getattr(kind, fact) != ""
    assert kind.threat_model.startswith("malicious server that ")
    assert kind.changes
    assert kind.changes <= set(get_args(Change))
    assert case.server.rounds >= 1
    assert all(f"{name}=" in repr(case.server) for name in inspect.signature(kind).parameters)


@pytest.mark.parametrize("case", CASES, ids=title)
def test_what_is_sent(case: Case) -> None:
    torch.manual_seed(0)
    model = case.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    public = pictures(PUBLIC, case.shape, seed=5).float()
    made = [
        case.server.craft(
            knowledge(case, model), public=public, generator=torch.Generator().manual_seed(3)
        )
        for _ in range(2)
    ]
    for crafted in made:
        check_crafted(case.server.name, crafted, before)
    assert made[0].config == made[1].config
    assert all(torch.equal(value, made[1].weights[n]) for n, value in made[0].weights.items())
    assert all(torch.equal(value, model.state_dict()[n]) for n, value in before.items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not made[0].config or "hyperparameters" in case.server.changes
    weights = any(not torch.equal(value, before[n]) for n, value in made[0].weights.items())
    assert weights == ("parameters" in case.server.changes)


@pytest.mark.parametrize("case", [case for case in CASES if case.server.reads], ids=title)
def test_what_is_read(case: Case) -> None:
    readings = []
    for _ in range(2):
        exchanges, model = exchanged(case)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        (group,) = exchanges.groups()
        assert len(group) == case.server.rounds
        readings.append(exchanges.read(group))
        assert all(torch.equal(value, model.state_dict()[n]) for n, value in before.items())
        features = exchanges.features_of(group, pictures(2, case.shape, seed=1).float())
        assert features is None or features.shape == (2, readings[-1].features.shape[1])
    first, again = readings
    assert first.findings == again.findings
    for part in ("inputs", "labels", "certified", "features"):
        assert torch.equal(getattr(first, part), getattr(again, part))


@pytest.mark.parametrize("case", CASES, ids=title)
def test_a_model_that_cannot_be_attacked_is_refused_in_a_clause(case: Case) -> None:
    assert case.server.refuses_model(case.model()) is None
    if case.others is not None:
        reason = case.server.refuses_model(case.others())
        assert reason
        assert not reason.endswith(".")
