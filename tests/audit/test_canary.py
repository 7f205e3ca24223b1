"""The audit's own client, and recorded batches that are trained again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fedleak.audit.canary import make_sample, replay, run_canary
from fedleak.audit.ladder import batches_of, truth_of
from fedleak.audit.run import conclude
from fedleak.updates.knowledge import Knowledge
from tests.audit.apps import imports_undone, observe


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with imports_undone():
        yield


@pytest.mark.parametrize("kind", ["images", "table", "text", "lightning"])
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
    monkeypatch.setattr("fedleak.audit.ladder.matching", lambda *args: (None, "no attack fits"))
    canary = run_canary(victims[0], seconds=1)
    assert not canary.reconstructed
    assert "no attack fits" in canary.note
    for name in ("label_shares", "label_shares_of_sum"):
        monkeypatch.setattr(f"fedleak.audit.run.{name}", lambda *args: None)
    found = conclude(app, observed, budget=1)
    assert found.verdict.overall == "not proven"
    assert found.verdict.sentence.startswith("Not proven")


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
