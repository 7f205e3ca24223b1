"""The audit's own client, and recorded batches that are trained again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.audit.canary import Canary, make_sample, replay, run_canary
from fedleak.audit.knowledge import Known
from fedleak.audit.ladder import Victim, batches_of, truth_of
from fedleak.audit.run import conclude
from fedleak.audit.sums import sum_of_round
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.private_model import private_copy
from fedleak.updates.update import InterceptedUpdate
from tests.audit.apps import GRADIENT, ONE_STEP, OPACUS, SENDS_GRADIENT, imports_undone, observe


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with imports_undone():
        yield


@pytest.mark.parametrize("kind", ["images", "table", "text", "lightning", "old"])
def test_recorded_batches_trained_again_give_the_update(kind: str, tmp_path: Path) -> None:
    _, observed, victims = observe(tmp_path, kind)
    for victim in victims:
        assert replay(victim, batches_of(observed, victim)) > 0.999
        inputs = torch.cat([batch.inputs for batch in batches_of(observed, victim)])
        number = victim.known.knowledge.num_samples
        assert torch.equal(truth_of(observed, victim).inputs, inputs[:number])
    assert replay(victims[0], batches_of(observed, victims[1])) < 0.999


def test_a_canary_that_is_not_found_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, observed, victims = observe(tmp_path, "images")
    monkeypatch.setattr("fedleak.audit.ladder.closed_forms", lambda victim: [])
    monkeypatch.setattr(
        "fedleak.audit.ladder.matching", lambda *args: (None, "no attack fits", 0.0)
    )
    canary = run_canary(victims[0], seconds=1)
    assert not canary.reconstructed
    assert "no attack fits" in canary.note
    for name in ("label_shares", "label_shares_of_sum"):
        monkeypatch.setattr(f"fedleak.audit.run.{name}", lambda *args: None)
    found = conclude(app, observed, budget=1)
    assert found.verdict.overall == "not proven"
    assert found.verdict.sentence.startswith("Not proven")


def test_a_canary_that_was_short_of_time_gets_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, observed, _ = observe(tmp_path, "images", task=ONE_STEP)
    tries: list[float] = []

    def canary(victim: Victim, *, seconds: float, **settings: object) -> Canary:
        tries.append(seconds)
        return Canary(len(tries) > 1, f"try {len(tries)}")

    monkeypatch.setattr("fedleak.audit.run.run_canary", canary)
    for name in ("label_shares", "label_shares_of_sum"):
        monkeypatch.setattr(f"fedleak.audit.run.{name}", lambda *args: None)
    # One that has failed at once is not tried again.
    assert conclude(app, observed, budget=10).verdict.canary is False
    assert tries == [2.0]
    tries.clear()
    monkeypatch.setattr("fedleak.audit.run.SHORT", 0.0)
    found = conclude(app, observed, budget=10).verdict
    assert (found.canary, found.canary_note) == (True, "try 2")
    assert tries[1] > 2.0


def test_a_canary_sends_no_layer_that_the_clients_keep(tmp_path: Path) -> None:
    _, observed, victims = observe(tmp_path, "table", task=None)
    whole = victims[0]
    assert run_canary(whole, seconds=5).attacked is not None
    names = list(whole.update.received)
    for kept in (names[-2:], names[-1:]):
        received = {name: whole.update.received[name] for name in kept}
        part = replace(whole, update=replace(whole.update, received=received))
        assert replay(part, batches_of(observed, part)) > 0.999
        assert not run_canary(part, seconds=5).reconstructed
    nothing = replace(whole, update=replace(whole.update, received={}))
    canary = run_canary(nothing, seconds=5)
    assert not canary.reconstructed
    assert "got none of them" in canary.note


def test_a_client_that_goes_up_the_gradient_is_not_one_that_goes_down(tmp_path: Path) -> None:
    up = ONE_STEP.replace(
        "optimizer.step()", "[p.grad.neg_() for p in model.parameters()]; optimizer.step()"
    )
    assert up != ONE_STEP
    _, observed, victims = observe(tmp_path, "images", task=up)
    assert replay(victims[0], batches_of(observed, victims[0])) < -0.99
    assert any("gradients are changed" in note for note in victims[0].known.notes)


@pytest.mark.parametrize(("shape", "whole"), [((3, 8, 8), None), ((5,), None), ((7,), 20)], ids=str)
def test_the_sample_of_the_canary(shape: tuple[int, ...], whole: int | None) -> None:
    knowledge = Knowledge(torch.nn.Flatten(), shape, 2)
    sample = make_sample(knowledge, whole)
    assert sample.shape == (1, *shape)
    assert torch.equal(sample, make_sample(knowledge, whole))
    assert not torch.equal(sample, make_sample(knowledge, whole, seed=1))
    if whole is not None:
        assert 0 <= int(sample.min()) <= int(sample.max()) < whole
    elif len(shape) == 3:
        assert 0 <= float(sample.min()) < float(sample.max()) <= 1


def test_a_server_that_makes_the_step_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies hold gradients: the canary sends one too, and the sum is one of gradients."""
    app, observed, victims = observe(tmp_path, "images", task=GRADIENT, sends=SENDS_GRADIENT)
    for victim in victims:
        assert victim.update.protocol == victim.known.knowledge.protocol == "fedsgd"
        assert observed.facts(victim.key).batch_sizes == (1,)
        assert replay(victim, batches_of(observed, victim)) > 0.999
        assert not [note for note in victim.known.notes if "changed" in note or "changes" in note]
        assert victim.setting == "1 sample, the gradient"
    monkeypatch.setattr("fedleak.audit.label_shares.MOST_SHADOWS", 40)
    found = conclude(app, observed, budget=10)
    assert found.verdict.canary
    answers = {(answer.rung, answer.question): answer for answer in found.verdict.answers}
    assert answers[3, "inputs"].status == "leaks"
    assert answers[3, "inputs"].answer.mean < 1e-2
    assert answers[2, "shares of labels"].status == "leaks"
    assert answers[0, "shares of labels"].status != "not tried"
    total = sum_of_round(victims)
    assert (total.update.protocol, total.known.knowledge.protocol) == ("fedsgd", "fedsgd")
    for name, value in total.update.received.items():
        mean = torch.stack([victim.update.received[name] for victim in victims]).mean(0)
        torch.testing.assert_close(value, mean)


def test_gradients_of_several_batches(tmp_path: Path) -> None:
    """They add up, as a client leaves them; the loss is that of all samples, times the batches."""
    task = GRADIENT.replace("torch.rand(1, 3, 6, 6), torch.randint(4, (1,))",
                            "torch.rand(4, 3, 6, 6), torch.randint(4, (4,))")  # fmt: skip
    task = task.replace("    loss = F.cross_entropy(model(x), y)\n    loss.backward()\n",
                        "    for part in (slice(0, 2), slice(2, 4)):\n"
                        "        loss = F.cross_entropy(model(x[part]), y[part])\n"
                        "        loss.backward()\n")  # fmt: skip
    _, observed, victims = observe(tmp_path, "images", task=task, sends=SENDS_GRADIENT)
    for victim in victims:
        facts = victim.known.knowledge
        assert (facts.num_samples, facts.steps) == (4, 1)
        batches = batches_of(observed, victim)
        assert len(batches) == 2
        assert replay(victim, batches) > 0.999
        whole = truth_of(observed, victim)
        model = private_copy(facts.model)
        model.load_state_dict(dict(victim.update.sent))
        found = torch.autograd.grad(
            facts.loss(model, (whole.inputs, whole.labels)), list(model.parameters())
        )
        for (name, _), value in zip(model.named_parameters(), found, strict=True):
            torch.testing.assert_close(value, victim.update.received[name])


class Quickstart(nn.Module):
    """The network of Flower's quickstart: functions between modules, and max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.conv1(x)))
        x = self.pool(functional.relu(self.conv2(x)))
        x = functional.relu(self.fc1(x.flatten(1)))
        return self.fc3(functional.relu(self.fc2(x)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [200, 201])
def test_the_canary_of_the_quickstart_on_any_weights(seed: int) -> None:
    torch.manual_seed(seed)
    model = Quickstart()
    facts = Knowledge(
        model, (3, 32, 32), 10, num_samples=1, protocol="fedavg", value_range=(-1.0, 1.0),
        local_training=LocalTraining(learning_rate=0.1, momentum=0.9, steps=1, batch_size=1),
    )  # fmt: skip
    update = InterceptedUpdate.of(model, weights=model.state_dict())
    canary = run_canary(
        Victim("r0001-c0000", update, Known(facts, (), (0,))), seconds=600, seed=seed
    )
    assert canary.reconstructed, canary.note


@pytest.mark.slow
def test_an_app_that_sends_lists(tmp_path: Path) -> None:
    """An app of before the Message API: its canary is trained, and its shares are answered."""
    app, observed, victims = observe(
        tmp_path, "old", task=ONE_STEP, more='[tool.fedleak]\nmodel = "{name}.task:make"'
    )
    for victim in victims:
        assert set(victim.update.sent) == set(victim.known.knowledge.model.state_dict())
        assert replay(victim, batches_of(observed, victim)) > 0.999
    found = conclude(app, observed, budget=20)
    assert found.verdict.canary
    answers = {(answer.rung, answer.question): answer for answer in found.verdict.answers}
    assert answers[2, "shares of labels"].status == "leaks"
    assert answers[3, "inputs"].answer.mean < 1e-2


def test_an_app_under_opacus(tmp_path: Path) -> None:
    """It is seen that the model is wrapped, and that the gradients are changed."""
    _, observed, victims = observe(tmp_path, "table", task=OPACUS)
    for victim in victims:
        facts = observed.facts(victim.key)
        assert facts.model is not None
        assert facts.optimizer is not None
        assert (facts.model.called, facts.optimizer.path) == ("wrapped", "torch.optim.sgd:SGD")
        assert facts.gradients_changed
        assert any("wrapped by Opacus" in note for note in victim.known.notes)
        assert replay(victim, batches_of(observed, victim)) < 0.99


@pytest.mark.slow
def test_the_verdict_of_an_app_under_opacus(tmp_path: Path) -> None:
    app, observed, _ = observe(tmp_path, "table", task=OPACUS)
    found = conclude(app, observed, budget=10)
    answers = {(answer.rung, answer.question): answer for answer in found.verdict.answers}
    assert answers[2, "shares of labels"].status != "not tried"
    assert not found.verdict.canary
    assert (
        "their recorded batches, trained again, give another update" in (found.verdict.canary_note)
        or "not reconstructed" in found.verdict.canary_note
    )
    assert found.verdict.overall != "nothing found"
