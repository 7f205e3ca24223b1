"""The command `fedleak audit`: what it prints, its exit codes, and bad input."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fedleak.audit.folder import AuditFolder
from fedleak.audit.results import SampleRow, read_rows
from fedleak.audit.simulation import run_app
from fedleak.cli import main as cli
from fedleak.cli.audit import where_to_look
from tests.audit.apps import (
    BUDGET,
    ONE_STEP,
    imports_undone,
    in_process,
    short_audits,
    write_kind,
)


@pytest.fixture(autouse=True)
def _short_audits() -> Iterator[None]:
    with short_audits():
        yield


def audit(*arguments: str) -> int:
    """The exit code of the command, in this process."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["audit", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("limits", "code"), [([], 0), (["--fail-above", "0.1"], 3), (["--fail-above", "inputs=1"], 0)]
)
def test_the_verdict_and_its_exit_code(
    limits: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    defaults = audit_defaults()
    monkeypatch.setitem(defaults, "run", partial(run_app, engine=in_process))
    with imports_undone():
        write_kind(tmp_path / "app", "images", task=ONE_STEP)
        found = audit(
            str(tmp_path / "app"), "--clients", "4", "--rounds", "1", "--budget", f"{BUDGET}s",
            "--output", str(tmp_path / "out"), *limits,
        )  # fmt: skip
    shown = capsys.readouterr()
    assert found == code
    assert "Leaks: " in shown.out
    assert "inputs leak" in shown.out
    assert (tmp_path / "out" / "summary.json").is_file()
    if code:
        assert "Above the limits of `--fail-above`: " in shown.err


def test_files_are_named_that_there_are(tmp_path: Path) -> None:
    files = AuditFolder(tmp_path / "out")
    files.path.mkdir()
    assert "results.csv" not in where_to_look(files)
    files.results.touch()
    assert f"results      {files.results}\n" in where_to_look(files)


def audit_defaults() -> dict[str, object]:
    """Keyword defaults of the function behind the command."""
    from fedleak.audit.run import audit as function

    assert function.__kwdefaults__ is not None
    return function.__kwdefaults__


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere"),
        (["app", "--budget", "soon"], "a time such as 90s, 10m or 1h, got soon"),
        (["app", "--fail-above", "much"], "QUESTION=0.1"),
        (["app", "--output="], "Expected a folder as `--output`"),
        (["app", "--public", "none.npz"], "an .npz file with `inputs` and `labels`"),
        (["app", "--clinets", "3"], "Did you mean `clients`"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert audit(*arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("fedleak: ")
    assert sentence in " ".join(shown.split())
    assert list(tmp_path.iterdir()) == []


def own_rows(out: Path) -> list[SampleRow]:
    """The rows of the clients' own updates, and that of the canary."""
    return [row for row in read_rows(out / "results.csv") if row.rung == 3]


def test_an_interrupted_audit_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults, out = audit_defaults(), tmp_path / "out"
    monkeypatch.setitem(defaults, "run", partial(run_app, engine=in_process))
    arguments = [
        str(tmp_path / "app"), "--clients", "4", "--rounds", "1", "--budget", f"{BUDGET}s",
        "--output", str(out),
    ]  # fmt: skip
    keep = AuditFolder.sample

    def interrupts(self: AuditFolder, key: str, *others: object) -> Path:
        if key == "r0001-c0002":
            os.kill(os.getpid(), signal.SIGTERM)
        return keep(self, key, *others)  # type: ignore[arg-type]

    with imports_undone():
        write_kind(tmp_path / "app", "images", task=ONE_STEP)
        with monkeypatch.context() as patched:
            patched.setattr(AuditFolder, "sample", interrupts)
            assert audit(*arguments) == 130
        shown = capsys.readouterr()
        assert "Audit interrupted; continue it with `--resume`." in shown.out
        assert "The audit was interrupted" in (out / "report.html").read_text()
        assert len(own_rows(out)) == 4  # the canary and three clients
        assert audit(*arguments) == 2
        assert "continue it with `--resume`" in capsys.readouterr().err
        assert audit(*arguments, "--resume", "--seed", "1") == 2
        assert "`seed` is `0` there and `1` here" in capsys.readouterr().err
        assert audit(*arguments, "--resume") == 0
    shown = capsys.readouterr()
    assert "The app does not train again" in shown.out
    assert "\x1b" not in shown.out
    assert len(own_rows(out)) == 5
    page = (out / "report.html").read_text()
    assert "The audit was interrupted" not in page
    assert (out / "figures" / "reconstructions.png").is_file()
    assert list((out / "tensorboard").glob("events.*"))


def test_an_app_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(audit_defaults(), "run", partial(run_app, engine=in_process))
    broken = "def make():\n    raise RuntimeError('no GPU here')\n\ndata = train = None\n"
    with imports_undone():
        write_kind(tmp_path / "app", "images", task=broken)
        assert audit(str(tmp_path / "app"), "--clients", "2", "--output", str(tmp_path / "o")) == 1
    shown = capsys.readouterr()
    assert "The app's ServerApp failed: no GPU here." in shown.err
    assert "continue with `--resume`" in " ".join(shown.err.split())
    assert "The audit failed: The app" in (tmp_path / "o" / "report.html").read_text()


@pytest.mark.slow
def test_on_ray_in_a_process_of_its_own(tmp_path: Path) -> None:
    with imports_undone():
        write_kind(tmp_path / "app", "images", task=ONE_STEP)
    program = shutil.which("fedleak", path=str(Path(sys.executable).parent))
    assert program is not None
    found = subprocess.run(
        [program, "audit", "app", "--clients", "3", "--rounds", "1", "--budget", "20s"],
        cwd=tmp_path, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "Leaks: " in found.stdout
    assert (tmp_path / "runs" / "audit" / "summary.json").is_file()
