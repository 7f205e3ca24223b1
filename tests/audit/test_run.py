"""An audit from top to bottom on a small app, without Ray; public samples; spans of time."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fedleak.audit.run import audit, conclude, read_public, read_span
from fedleak.audit.simulation import run_app
from fedleak.errors import BadInput
from tests.audit.apps import ONE_STEP, imports_undone, in_process, write_kind

run = partial(run_app, engine=in_process)


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with imports_undone():
        yield


def test_an_app_that_leaks_everything(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    found = audit(app, tmp_path / "out", clients=4, rounds=1, budget=20, run=run)
    answers = {answer.question: answer for answer in found.verdict.answers if answer.rung in (2, 3)}
    assert found.verdict.canary
    assert found.verdict.overall == "leaks"
    assert answers["inputs"].status == "leaks"
    assert answers["inputs"].answer.mean < 1e-2  # relative error: images too small for SSIM
    assert answers["inputs"].guess.mean > 0.3
    assert answers["shares of labels"].status == "leaks"
    assert [answer.rung for answer in found.verdict.answers] == [0, 0, 1, 2, 3, 4, 5]
    for answer in found.verdict.answers[-2:]:
        assert answer.status == "not tried"
        assert "this one only listens" in answer.sentence
    assert all(score.supported for score in found.scores)
    written = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert written == found.verdict.to_dict()
    # Nothing of an attack's input holds the truth.
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"updates", "truth", "facts"}


def test_facts_that_do_not_give_the_update_make_a_canary_worthless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    observed = run(app, tmp_path / "out", clients=4, rounds=1)
    monkeypatch.setattr("fedleak.audit.run.replay", lambda *args: 0.5)
    for name in ("label_shares", "label_shares_of_sum"):
        monkeypatch.setattr(f"fedleak.audit.run.{name}", lambda *args: None)
    found = conclude(app, observed, budget=5)
    assert found.verdict.canary is False
    assert "squared cosine 0.500" in found.verdict.canary_note


def test_what_fails_in_one_question_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    observed = run(app, tmp_path / "out", clients=4, rounds=1)

    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the model takes no such data")

    monkeypatch.setattr("fedleak.audit.run.label_shares", fails)
    monkeypatch.setattr("fedleak.audit.run.label_shares_of_sum", lambda *args: None)
    found = conclude(app, observed, budget=5)
    answers = {answer.question: answer for answer in found.verdict.answers if answer.rung in (2, 3)}
    assert answers["shares of labels"].status == "not tried"
    assert "the model takes no such data" in answers["shares of labels"].sentence
    assert answers["inputs"].status == "leaks"


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
