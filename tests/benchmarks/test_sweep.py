"""The benchmark of a sweep in small."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.sweep import sweep_two_process_speedup

FAKE = Path(__file__).parents[1] / "fake_run.py"


def fake(**settings):
    """A command that stands in for a run; see fake_run.py for its settings."""

    def command(config: Path, folder: Path, resume: bool) -> list[str]:
        return [sys.executable, str(FAKE), str(config), str(folder), json.dumps(settings)]

    return command


def test_a_sweep_records_both_sides_and_its_setting():
    record = sweep_two_process_speedup(
        cells=2, iterations=1, clients=3, repetitions=2, command=fake()
    ).record()
    assert record["n"] == 2
    assert record["spread"]["min"] <= record["value"] <= record["spread"]["max"]
    assert {"one_process_seconds", "two_processes_seconds"} <= set(record["details"])
    assert (record["setting"]["runs"], record["setting"]["victims"]) == (2, 3)


def test_rows_that_differ_are_no_measurement(monkeypatch):
    timed = iter([(2.0, [{"ssim": "1"}], 0.5), (1.0, [{"ssim": "0"}], 0.5)])
    monkeypatch.setattr("benchmarks.sweep._timed", lambda *_: next(timed))
    with pytest.raises(RuntimeError, match="Expected the same rows from 1 and 2 processes"):
        sweep_two_process_speedup(cells=2, iterations=1, clients=3, command=fake())


def test_a_run_that_fails_is_no_measurement():
    with pytest.raises(RuntimeError, match="Expected better weather"):
        sweep_two_process_speedup(cells=2, iterations=1, clients=3, command=fake(fail="seed1"))
