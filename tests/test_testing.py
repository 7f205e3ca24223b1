"""The assertion for tests of Flower apps, on small apps without Ray."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fedleak.audit.run import audit
from fedleak.audit.simulation import run_app
from fedleak.errors import BadInput
from fedleak.testing import assert_no_leak
from tests.audit.apps import (
    BUDGET,
    ONE_STEP,
    imports_undone,
    in_process,
    short_audits,
    write_kind,
)


@pytest.fixture(autouse=True)
def _imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    in_this_process = partial(audit, run=partial(run_app, engine=in_process))
    monkeypatch.setattr("fedleak.audit.run.audit", in_this_process)
    with imports_undone(), short_audits():
        yield


def test_an_app_that_leaks_fails_the_assertion_with_the_answers(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    with pytest.raises(AssertionError) as caught:
        assert_no_leak(
            app.folder, clients=3, rounds=1, budget=f"{BUDGET}s", output=tmp_path / "out"
        )
    text = str(caught.value)
    assert text.startswith("Above the limits: ")
    assert "\n- inputs leak; " in text
    assert "Canary: the audit's own client was reconstructed" in text
    assert (tmp_path / "out" / "summary.json").is_file()


def test_a_question_without_a_limit_is_not_held_to_any(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    found = assert_no_leak(app, limits={"set of tokens": 0.1}, clients=2, rounds=1, budget=BUDGET)
    assert found.verdict.overall == "leaks"


def test_what_is_not_proven_fails_the_assertion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    monkeypatch.setattr("fedleak.audit.run.label_shares", lambda *args: None)
    monkeypatch.setattr("fedleak.audit.run.label_shares_of_sum", lambda *args: None)
    monkeypatch.setattr("fedleak.audit.ladder.closed_forms", lambda victim: [])
    monkeypatch.setattr(
        "fedleak.audit.ladder.matching", lambda *args: (None, "no attack fits", 0.0)
    )
    with pytest.raises(AssertionError, match=r"^Not proven: .*no attack fits"):
        assert_no_leak(app, clients=2, rounds=1, budget=BUDGET)


def test_bad_arguments_are_refused_before_the_app_runs(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    with pytest.raises(BadInput, match="a limit for at least one question"):
        assert_no_leak(app, limits={})
    with pytest.raises(BadInput, match=r"Did you mean `inputs`"):
        assert_no_leak(app, limits={"imputs": 0.1})
    with pytest.raises(BadInput, match="from 0 to 1"):
        assert_no_leak(app, limits=3.0)
    with pytest.raises(BadInput, match="with the folder of an app"):
        assert_no_leak(app, run_config="lr=0.1")
    with pytest.raises(BadInput, match="the folder of a Flower app"):
        assert_no_leak(tmp_path / "nowhere")


def test_its_import_loads_nothing_of_flower() -> None:
    code = "import sys, fedleak.testing; print({'flwr', 'ray', 'torch'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
