"""What an update tells of how it was made."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from fedleak.updates.evidence import check
from fedleak.updates.knowledge import Knowledge, batch_loss
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.update import InterceptedUpdate
from tests.cases import LIGHT_MODELS, ModelCase, Victim, make_victim, several_steps

# The findings about the gradient of the classifier's bias.
OF_THE_BIAS = {"rate", "loss", "counts", "labels"}


def kinds(victim: Victim) -> set[str]:
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
    model = case.make(precode=precode)
    for labels in ([1], [0, 0, 2, 1]):
        for learned in (False, True):
            victim = make_victim(model, case.shape, batch=len(labels), labels=labels)
            if learned:
                learn(victim)
                victim = make_victim(model, case.shape, batch=len(labels), labels=labels)
            assert not kinds(victim)
            for batch_size, epochs in ((1, 1), (len(labels), 2)):
                assert not kinds(several_steps(victim, batch_size=batch_size, epochs=epochs))


CRITERIA: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "mean": (cross_entropy, 10),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), 10),
    "factor": (lambda outputs, labels: 3 * cross_entropy(outputs, labels), 10),
    "weights": (nn.CrossEntropyLoss(torch.linspace(0.2, 4, 10)), 10),
    "weights, sum": (nn.CrossEntropyLoss(torch.linspace(0.2, 4, 10), reduction="sum"), 10),
    "smoothing": (nn.CrossEntropyLoss(label_smoothing=0.2), 10),
    "binary": (lambda z, y: binary_cross_entropy_with_logits(z.squeeze(1), (y % 2).to(z)), 1),
    "regression": (lambda z, y: mse_loss(z.squeeze(1), y.to(z)), 1),
}
LABELS = torch.tensor([3, 3, 1, 7, 7, 7, 0, 9])


def client(
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


def found(update: tuple[nn.Module, Any, InterceptedUpdate], **told: Any) -> set[str]:
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
    update = client(name, rate=0.01, learned=learned)
    assert not found(update, learning_rate=0.01)
    assert not found(update, learning_rate=0.01, labels=LABELS)
    update = client(name, rate=0.01, size=2, epochs=3, learned=learned)
    assert not found(update, learning_rate=0.01, steps=12, batch_size=2)
    assert not found(update, learning_rate=0.01, steps=12, batch_size=2, labels=LABELS)


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "regression"])
def test_a_rate_that_is_too_small(name: str) -> None:
    update = client(name, rate=0.1)
    assert "rate" in found(update, learning_rate=0.002)


def test_the_contradictions_of_told_facts() -> None:
    plain = client("mean", rate=0.1)
    assert found(plain, learning_rate=0.01) == {"rate"}
    assert found(plain, learning_rate=0.1, num_samples=2) == {"counts"}
    wrong = torch.tensor([2, 2, 2, 2, 4, 4, 4, 4])
    assert found(plain, learning_rate=0.1, labels=wrong) == {"labels"}
    many = client("mean", rate=0.05, size=8, epochs=3)
    assert found(many, learning_rate=0.05) == {"rate"}
    short = client("mean", rate=0.05, size=2)
    assert found(short, learning_rate=0.05) & {"rate", "counts"}
    # A client of a sum, of which a mean is told.
    model, _, update = client("sum", rate=0.01)
    _, mean, _ = client("mean", rate=0.01)
    assert found((model, mean, update), learning_rate=0.01) == {"rate"}
    model, _, update = client("mean", rate=0.1)
    moved = dict(update.received)
    moved["2.bias"] = moved["2.bias"] + 0.01
    noisy = InterceptedUpdate.of(model, weights=moved, num_examples=8)
    assert found((model, mean, noisy), learning_rate=0.1) == {"loss"}
