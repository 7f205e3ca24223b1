"""An audit from top to bottom on a small app, without Ray; public samples; spans of time."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fedleak.audit import read_app
from fedleak.audit.findings import Findings
from fedleak.audit.ladder import Public
from fedleak.audit.progress import AuditObserver
from fedleak.audit.results import read_rows
from fedleak.audit.run import Audit, audit, conclude, read_span
from fedleak.audit.simulation import run_app
from fedleak.audit.summary import AuditSummary
from fedleak.audit.verdict import Answer
from fedleak.errors import BadInput, RunFailed
from fedleak.federation.engine.ray_engine import FederationError
from tests.audit.apps import (
    BUDGET,
    ONE_STEP,
    imports_undone,
    in_process,
    short_audits,
    write_kind,
)

run = partial(run_app, engine=in_process)


def never(*args: Any, **settings: Any) -> Any:
    raise AssertionError("the app has run before")


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with imports_undone():
        yield


@pytest.fixture(scope="module", autouse=True)
def _short_audits() -> Iterator[None]:
    with short_audits():
        yield


@pytest.fixture(scope="module")
def whole(_short_audits: None, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """An audit that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with imports_undone():
        app = write_kind(folder / "app", "images", task=ONE_STEP)
        return audit(app, folder / "out", clients=4, rounds=1, budget=BUDGET, run=run)


def test_an_app_that_leaks_everything(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    found = audit(app, tmp_path / "out", clients=4, rounds=1, budget=BUDGET, run=run)
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
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["verdict"] == found.verdict.to_dict()
    assert written["status"] == "complete"
    assert written["settings"]["clients"] == 4
    assert 0 < written["used"] < BUDGET
    # Active servers; the time may not suffice for the sum.
    assert [text[:10] for text in written["not_tried"]][-2:] == 2 * ["inputs by "]
    rows = read_rows(tmp_path / "out" / "results.csv")
    assert [row.question for row in rows if row.rung == 3] == ["canary", *4 * ["inputs"]]
    pictures = {path.name for path in (tmp_path / "out" / "figures" / "victims").iterdir()}
    assert {"canary-0-found.png", "r0001-c0003-0-true.png"} <= pictures
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
    found = conclude(app, observed, budget=BUDGET)
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
    found = conclude(app, observed, budget=BUDGET)
    answers = {answer.question: answer for answer in found.verdict.answers if answer.rung in (2, 3)}
    assert answers["shares of labels"].status == "not tried"
    assert "the model takes no such data" in answers["shares of labels"].sentence
    assert answers["inputs"].status == "leaks"


def test_a_privacy_that_cannot_be_counted_costs_no_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)

    def uncounted(*args: object) -> None:
        raise BadInput("Expected `delta` of local_dp_mod below 1, got 1.2.")

    monkeypatch.setattr("fedleak.audit.run.spent_by_app", uncounted)
    for name in ("label_shares", "label_shares_of_sum"):
        monkeypatch.setattr(f"fedleak.audit.run.{name}", lambda *args: None)
    findings = Findings()
    observed = run(app, tmp_path / "out", clients=2, rounds=1)
    found = conclude(app, observed, budget=5, findings=findings)
    note = (
        "what the clients spend of their privacy is not counted: Expected `delta` of local_dp_mod "
        "below 1, got 1.2."
    )
    assert found.notes[0] == note
    assert findings.summary.to_dict()["notes"][0] == note
    assert findings.summary.privacy is None
    answers = {answer.question: answer for answer in found.verdict.answers if answer.rung in (1, 3)}
    assert answers["inputs"].status == "leaks"
    assert answers["number of samples"].answer.n == 2


def test_updates_of_some_layers_are_told_in_the_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    package = app.client.partition(".")[0]
    text = (app.folder / package / "client_app.py").read_text()
    text = text.replace(
        "in model.state_dict().items()}", "in model.state_dict().items() if '.b' in k}"
    )
    (app.folder / package / "client_app.py").write_text(text)
    del sys.modules[f"{package}.client_app"]
    for name in ("label_shares", "label_shares_of_sum"):
        monkeypatch.setattr(f"fedleak.audit.run.{name}", lambda *args: None)
    found = conclude(app, run(app, tmp_path / "out", clients=2, rounds=1), budget=5)
    (note,) = [one for one in found.notes if "of the model's" in one]
    assert note.startswith("2 of 2 updates have 2 of the model's 4 parameters and lack `1.weight`")


# ------------------------------------------------------------------- interrupted and continued


def inputs_of(found: Audit) -> Answer:
    """The answer of a server that sees the clients' updates."""
    (answer,) = [a for a in found.verdict.answers if (a.rung, a.question) == (3, "inputs")]
    return answer


class Stops(AuditObserver):
    """Interrupts the audit at an event, as Ctrl-C does, and counts the events."""

    def __init__(self, event: str = "", at: int = 1) -> None:
        self.counts: Counter[str] = Counter()
        self.sentences: list[str] = []
        for name in [name for name in vars(AuditObserver) if not name.startswith("_")]:
            setattr(self, name, partial(self._count, name, event, at))

    def _count(self, name: str, event: str, at: int, *arguments: object) -> None:
        if name == "victim_attacked" and arguments[1] == 1:
            return  # the sum, for which the time may not suffice
        self.counts[name] += 1
        self.sentences += [str(a) for a in arguments if name in ("said", "stage_started")]
        if name == event and self.counts[name] == at:
            raise KeyboardInterrupt


def run_twice(tmp_path: Path, event: str, at: int) -> tuple[Audit, Stops, dict[str, Any]]:
    """An audit that is interrupted and resumed; what came of it, and the first summary."""
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    settings: dict[str, Any] = {"clients": 4, "rounds": 1, "budget": BUDGET, "run": run}
    with pytest.raises(KeyboardInterrupt):
        audit(app, tmp_path / "out", observers=[Stops(event, at)], **settings)
    first = json.loads((tmp_path / "out" / "summary.json").read_text())
    again = Stops()
    found = audit(app, tmp_path / "out", observers=[again], resume=True, **settings)
    return found, again, first


@pytest.mark.parametrize(
    ("event", "at", "answered", "left"),
    [
        ("app_ended", 1, 0, 4), ("stage_started", 1, 0, 4), ("answered", 1, 1, 4),
        ("stage_started", 3, 1, 4), ("victim_attacked", 2, 4, 2),
    ],
)  # fmt: skip
def test_an_interrupted_audit_goes_on(
    event: str, at: int, answered: int, left: int, whole: Audit, tmp_path: Path
) -> None:
    found, again, first = run_twice(tmp_path, event, at)
    assert first["status"] == "interrupted"
    assert first["app_complete"]
    final = [a for a in first["verdict"]["answers"] if [a["rung"], a["question"]] not in
             first["unfinished"]]  # fmt: skip
    assert len(final) == answered
    # What is missing is never taken for something that was not found.
    assert first["verdict"]["overall"] in ("not proven", "leaks")
    assert again.counts["app_started"] == 0
    assert again.counts["victim_attacked"] == left
    assert "The app does not train again: its updates are complete." in again.sentences
    assert found.verdict.overall == "leaks"
    assert [score.key for score in found.scores] == [f"r0001-c000{number}" for number in range(4)]
    # It ends as an audit that was not interrupted.
    for one, other in zip(found.verdict.answers, whole.verdict.answers, strict=True):
        assert one.title == other.title
        if one.rung:  # the sum is searched as long as the time allows
            assert (one.status, one.gains) == (other.status, other.gains)
    rows = read_rows(tmp_path / "out" / "results.csv")
    assert [row.question for row in rows if row.rung == 3] == ["canary", *4 * ["inputs"]]


def test_an_interrupted_training_of_the_app_starts_anew(tmp_path: Path) -> None:
    found, again, first = run_twice(tmp_path, "app_started", 1)
    assert not first["app_complete"]
    assert first["verdict"]["overall"] == "not proven"
    assert again.counts["app_started"] == 1
    assert found.verdict.overall == "leaks"

    def stopped(*args: Any, **kwargs: Any) -> Any:
        run(*args, **kwargs)
        raise KeyboardInterrupt

    app = read_app(tmp_path / "app")
    out = tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        audit(app, out, clients=4, rounds=1, budget=BUDGET, run=stopped)
    assert (out / "updates").is_dir()
    again = Stops("stage_started")
    with pytest.raises(KeyboardInterrupt):
        audit(app, out, clients=4, rounds=1, budget=BUDGET, run=run, resume=True, observers=[again])
    assert "The app's training was not complete: it starts anew." in again.sentences


def test_a_complete_audit_is_read_from_its_folder(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    settings: dict[str, Any] = {"clients": 3, "rounds": 1, "budget": BUDGET}
    first = audit(app, tmp_path / "out", run=run, **settings)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it runs again")

    second = audit(app, tmp_path / "out", run=fails, resume=True, **settings)
    assert second.verdict.to_dict() == first.verdict.to_dict()
    assert [s.values for s in second.scores] == [s.values for s in first.scores]
    with pytest.raises(BadInput, match="`seed` is `0` there and `1` here"):
        audit(app, tmp_path / "out", run=fails, resume=True, seed=1, **settings)
    (tmp_path / "app" / "more.py").write_text("")
    with pytest.raises(BadInput, match="the app has been changed"):
        audit(app, tmp_path / "out", run=fails, resume=True, **settings)


def test_a_larger_budget_asks_again_what_was_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    settings: dict[str, Any] = {"clients": 3, "rounds": 1, "run": run}
    with monkeypatch.context() as patched:
        patched.setattr("fedleak.audit.ladder.closed_forms", lambda victim: [])
        patched.setattr(
            "fedleak.audit.ladder.matching", lambda *args: (None, "no attack fits", 0.0)
        )
        first = audit(app, tmp_path / "out", budget=BUDGET / 2, **settings)
    assert inputs_of(first).status == "not tried"
    assert first.verdict.canary is False
    second = audit(app, tmp_path / "out", budget=BUDGET, resume=True, **settings)
    assert second.verdict.canary
    assert inputs_of(second).status == "leaks"
    # The canary has one row, that of its second try.
    assert [row.question for row in read_rows(tmp_path / "out" / "results.csv")].count(
        "canary"
    ) == 1


def test_another_model_after_a_restart_is_refused(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    settings: dict[str, Any] = {"clients": 3, "rounds": 1, "budget": BUDGET, "run": run}
    with pytest.raises(KeyboardInterrupt):
        audit(app, tmp_path / "out", observers=[Stops("answered")], **settings)
    path = tmp_path / "out" / "summary.json"
    path.write_text(path.read_text().replace("Sigmoid", "Tanh"))
    with pytest.raises(BadInput, match="Expected the model of the audit's first part"):
        audit(app, tmp_path / "out", resume=True, **settings)
    assert json.loads(path.read_text())["status"] == "failed"


def test_what_the_app_fails_of_is_noted(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise FederationError("The app's ServerApp failed: no data.")

    with pytest.raises(RunFailed, match="The app's ServerApp failed: no data"):
        audit(app, tmp_path / "out", clients=3, rounds=1, budget=BUDGET, run=fails)
    summary = AuditSummary.load(tmp_path / "out" / "summary.json")
    assert (summary.status, summary.reason) == ("failed", "The app's ServerApp failed: no data.")
    assert summary.verdict.overall == "not proven"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"clients": 0}, "Expected at least 1 client, got 0"),
        ({"budget": 0.0}, "Expected a budget above 0 seconds, got 0"),
        ({"rounds": 0}, "Expected at least 1 round, got 0"),
        ({"gpus_per_client": 99}, "Expected `gpus_per_client` to be at most"),
        ({"resume": True, "overwrite": True}, "Expected one of `--resume` and `--overwrite`"),
    ],
)
def test_bad_arguments_write_nothing(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    with pytest.raises(BadInput, match=sentence):
        audit(app, tmp_path / "out", run=run, **{"clients": 2} | settings)
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------- the budget


def test_attacks_that_hang_are_ended_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    observed = run(app, tmp_path / "out", clients=4, rounds=1)

    def hangs(self: object, *args: object, **kwargs: object) -> None:
        while True:
            time.sleep(0.01)

    monkeypatch.setattr("fedleak.attacks.analytic.Analytic.run", hangs)
    monkeypatch.setattr("fedleak.audit.run.label_shares", hangs)
    # Most of the time is left for the inputs, which are asked about last.
    for name in ("CANARY_SHARE", "SHADOW_SHARE"):
        monkeypatch.setattr(f"fedleak.audit.run.{name}", 0.05)
    begun = time.monotonic()
    found = conclude(app, observed, budget=12)
    assert time.monotonic() - begun < 120  # they would never end
    answers = {answer.question: answer for answer in found.verdict.answers if answer.rung in (2, 3)}
    assert "more than its share of the budget" in answers["shares of labels"].sentence
    assert answers["inputs"].status == "not tried" or not answers["inputs"].conclusive
    assert "more than its share of the time" in answers["inputs"].note
    assert found.verdict.overall == "not proven"


def test_public_samples_of_another_shape_are_refused_after_the_app_run(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    public = Public(torch.zeros(4, 108), torch.arange(4), "mine.npz")
    sentence = r"of the shape \(3, 6, 6\) per sample in mine.npz, .*, got \(108,\)"
    with pytest.raises(BadInput, match=sentence):
        audit(app, tmp_path / "out", clients=2, rounds=1, budget=BUDGET, public=public, run=run)
    summary = AuditSummary.load(tmp_path / "out" / "summary.json")
    assert summary.status == "failed"
    assert "mine.npz" in summary.reason
    assert summary.canary is None  # nothing was attacked
    right = Public(torch.zeros(40, 3, 6, 6), torch.arange(40) % 4, "right.npz")
    again = audit(
        app, tmp_path / "out", clients=2, rounds=1, budget=5, public=right, run=never, resume=True
    )
    assert again.verdict.answers


# ------------------------------------------------------------------------- clients that fail


def test_an_app_whose_clients_all_fail_is_refused_with_their_error(tmp_path: Path) -> None:
    task = ONE_STEP.replace(
        "def data(number):", "def data(number):\n    raise RuntimeError('boom')"
    )
    app = write_kind(tmp_path / "app", "images", task=task)
    sentence = (
        "Expected updates that can be attacked, got none: 2 of 2 trainings failed "
        r"\(client 0 in round 1, client 1 in round 1\): boom"
    )
    with pytest.raises(BadInput, match=sentence):
        audit(app, tmp_path / "out", clients=2, rounds=1, budget=BUDGET, run=run)
    summary = AuditSummary.load(tmp_path / "out" / "summary.json")
    assert "2 of 2 trainings failed" in summary.failures[0]


def test_a_failed_client_and_clients_that_were_not_asked_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = ONE_STEP.replace("def data(number):", "def data(number):\n    assert number, 'boom'")
    app = write_kind(tmp_path / "app", "images", task=task)
    server = app.folder / app.server.partition(":")[0].replace(".", "/")
    text = server.with_suffix(".py").read_text()
    server.with_suffix(".py").write_text(
        text.replace("FedAvg(", "FedAvg(fraction_train=0.75, ").replace(
            "train_nodes=1", "train_nodes=3"
        )
    )
    sys.modules.pop(app.server.partition(":")[0], None)
    monkeypatch.setattr("random.sample", lambda nodes, number: sorted(nodes)[:number])
    for name in ("label_shares", "label_shares_of_sum"):
        monkeypatch.setattr(f"fedleak.audit.run.{name}", lambda *args: None)
    found = audit(app, tmp_path / "out", clients=4, rounds=1, budget=3, run=run)
    failed = "1 of 3 trainings failed (client 0 in round 1): boom"
    assert failed in found.notes
    assert (
        "as the app asked them, 3 of 4 clients in round 1 took part in the training" in found.notes
    )
    summary = AuditSummary.load(tmp_path / "out" / "summary.json")
    assert summary.failures == [failed]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2 h", 7200)]
)
def test_spans_of_time(text: str, seconds: float) -> None:
    assert read_span(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-3m", "0", "3d"])
def test_what_is_no_span_of_time(text: str) -> None:
    with pytest.raises(BadInput, match="a time such as 90s, 10m or 1h"):
        read_span(text)
