"""An audit from top to bottom on small apps, without Ray, and its parts."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedleak.audit.canary import make_sample, replay, run_canary
from fedleak.audit.ladder import Victim, batches_of, find_victims, inputs, touched_rows, truth_of
from fedleak.audit.run import Audit, audit, conclude, read_public, read_span
from fedleak.audit.simulation import Observed, run_app
from fedleak.audit.truth_scores import Samples, mean_guess, measure_of
from fedleak.errors import BadInput
from fedleak.updates.knowledge import Knowledge
from tests.audit.apps import imports_undone, in_process, write_kind

run = partial(run_app, engine=in_process)
# One sample, one step of plain SGD on a perceptron: what an analytic attack reads exactly.
EASY = """
import torch
from torch import nn
from torch.nn import functional as F

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 24), nn.Sigmoid(), nn.Linear(24, 4))

def data(number):
    torch.manual_seed(100 + number)
    return torch.utils.data.TensorDataset(torch.rand(1, 3, 6, 6), torch.randint(4, (1,)))

def train(model, examples, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    x, y = examples.tensors
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()
"""


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with imports_undone():
        yield


def observe(tmp_path: Path, kind: str, **settings: Any) -> tuple[Any, Observed, list[Victim]]:
    """An app after one round with four clients, and its victims."""
    app = write_kind(tmp_path / "app", kind, **settings)
    observed = run(app, tmp_path / "out", clients=4, rounds=1)
    victims, reasons = find_victims(app, observed)
    assert not reasons
    return app, observed, victims


def test_an_app_that_leaks_everything(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "images", task=EASY)
    found = audit(app, tmp_path / "out", clients=4, rounds=1, budget=20, run=run)
    answers = {answer.question: answer for answer in found.verdict.answers}
    assert found.verdict.canary
    assert found.verdict.overall == "leaks"
    assert answers["inputs"].status == "leaks"
    assert answers["inputs"].answer.mean < 1e-2  # relative error: images too small for SSIM
    assert answers["inputs"].guess.mean > 0.3
    assert answers["shares of labels"].status == "leaks"
    assert all(score.supported for score in found.scores)
    written = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert written == found.verdict.to_dict()
    # Nothing of an attack's input holds the truth.
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"updates", "truth", "facts"}


@pytest.mark.parametrize("kind", ["images", "table", "text", "lightning"])
def test_recorded_batches_trained_again_give_the_update(kind: str, tmp_path: Path) -> None:
    _, observed, victims = observe(tmp_path, kind)
    for victim in victims:
        assert replay(victim, batches_of(observed, victim)) > 0.999
        inputs = torch.cat([batch.inputs for batch in batches_of(observed, victim)])
        number = victim.known.knowledge.num_samples
        assert torch.equal(truth_of(observed, victim).inputs, inputs[:number])
    assert replay(victims[0], batches_of(observed, victims[1])) < 0.999


def test_a_texts_set_of_tokens_is_read_exactly(tmp_path: Path) -> None:
    _, observed, victims = observe(tmp_path, "text")
    answer = touched_rows(observed, victims)
    assert answer is not None
    assert answer.answer.mean == 1.0
    assert answer.guess.mean < 1.0
    assert answer.status == "leaks"


def test_what_takes_too_long_is_said_and_not_tried(tmp_path: Path) -> None:
    _, observed, victims = observe(tmp_path, "images")
    answer, scores = inputs(observed, victims, seconds=1e-3)
    assert answer.status == "not tried"
    assert not scores
    assert "no time was left" in answer.sentence or "more than the budget" in answer.sentence


def test_a_canary_that_is_not_found_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, observed, victims = observe(tmp_path, "images")
    monkeypatch.setattr("fedleak.audit.ladder.closed_forms", lambda victim: [])
    monkeypatch.setattr("fedleak.audit.ladder.matching", lambda *args: (None, "no attack fits"))
    canary = run_canary(victims[0], seconds=1)
    assert not canary.reconstructed
    assert "no attack fits" in canary.note
    monkeypatch.setattr("fedleak.audit.run.label_shares", lambda *args, **kwargs: None)
    found = conclude(app, observed, budget=1)
    assert isinstance(found, Audit)
    assert found.verdict.overall == "not proven"
    assert found.verdict.sentence.startswith("Not proven")


def test_facts_that_do_not_give_the_update_make_a_canary_worthless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = write_kind(tmp_path / "app", "images", task=EASY)
    observed = run(app, tmp_path / "out", clients=4, rounds=1)
    monkeypatch.setattr("fedleak.audit.run.replay", lambda *args: 0.5)
    monkeypatch.setattr("fedleak.audit.run.label_shares", lambda *args, **kwargs: None)
    found = conclude(app, observed, budget=5)
    assert found.verdict.canary is False
    assert "squared cosine 0.500" in found.verdict.canary_note


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


def test_the_guess_is_the_mean_of_the_others_or_their_most_frequent_number() -> None:
    truth = Samples(torch.zeros(3, 2), None)
    others = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])]
    assert mean_guess(others, truth).tolist() == [[2.0, 3.0]] * 3
    assert mean_guess([], truth).tolist() == [[0.0, 0.0]] * 3
    numbers = Samples(torch.zeros(1, 2, dtype=torch.long), None)
    texts = [torch.tensor([[5, 1], [5, 2]]), torch.tensor([[4, 2]])]
    assert mean_guess(texts, numbers).tolist() == [[5, 2]]
    assert measure_of(numbers)[1] == 1.0
    assert measure_of(truth)[1] == 0.0


def test_public_samples_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "public.npz"
    np.savez(path, inputs=np.zeros((3, 1, 4, 4), np.float64), labels=np.array([0, 1, 0]))
    public = read_public(path)
    assert public.inputs.dtype == torch.float32
    assert public.labels.tolist() == [0, 1, 0]
    np.savez(path, inputs=np.zeros((3, 4)))
    with pytest.raises(BadInput, match="`inputs` and `labels` of equal length"):
        read_public(path)
    path.write_bytes(b"no archive")
    with pytest.raises(BadInput, match=r"an \.npz file with `inputs` and `labels`"):
        read_public(path)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2 h", 7200)]
)
def test_spans_of_time(text: str, seconds: float) -> None:
    assert read_span(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-3m", "0", "3d"])
def test_what_is_no_span_of_time(text: str) -> None:
    with pytest.raises(BadInput, match="a time such as 90s, 10m or 1h"):
        read_span(text)
