"""Studies, sweeps and observers to share between tests.

All but one test replace the run by ``tests/fake_run.py``. It behaves as a real run, which
tests/test_experiment.py checks: it writes its configuration first, appends each finished update to
results.csv at once, marks the summary complete at the end, and with --resume runs what is missing.
Results on killed sweeps therefore hold for real runs too.
"""

import csv
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import yaml

from fedleak.runs.results import COLUMNS
from fedleak.sweep import SweepObserver, load_study, run_sweep

FAKE = Path(__file__).parents[1] / "fake_run.py"
BASE = {
    "data": "photos",
    "model": "smlp",
    "federation": {"clients": 3},
    "attacks": [{"class_path": "iga", "init_args": {"iterations": 7}}],
}
GRID = {"model": ["smlp", "lenet"], "seed": [0, 1]}
NAMES = ["smlp_seed0", "smlp_seed1", "lenet_seed0", "lenet_seed1"]


def study_of(tmp_path: Path, base=None, grid=None, **more):
    path = tmp_path / "study.yaml"
    content = {"base": BASE if base is None else base, "grid": GRID if grid is None else grid}
    path.write_text(yaml.safe_dump(content | more, sort_keys=False), encoding="utf-8")
    return load_study(path)


def fake(**settings):
    """A command that stands in for a run; see fake_run.py for its settings."""

    def command(config: Path, folder: Path, resume: bool) -> list[str]:
        return [sys.executable, str(FAKE), str(config), str(folder), json.dumps(settings)]

    return command


def sweep(tmp_path: Path, observer=None, *, study=None, fake_settings=None, **flags):
    study = study or study_of(tmp_path)
    command = fake(**(fake_settings or {}))
    return run_sweep(study, tmp_path / "out", observer, command=command, **flags)


def states(summary: dict) -> dict[str, str]:
    return {cell["name"]: cell["status"] for cell in summary["cells"]}


def assert_whole(output: Path, names=NAMES) -> None:
    """No victim twice, none missing, and results.csv holds the cells' rows one after another."""
    expected = []
    for name in names:
        with (output / "cells" / name / "results.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert Counter(row["client"] for row in rows) == Counter(["0", "1", "2"])
        expected += [{"cell": name} | row for row in rows]
    with (output / "results.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames) == ("cell", *COLUMNS)
        assert list(reader) == expected


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout[:1] not in ("Z", "")


def ended(pid: int, seconds: float = 60) -> bool:
    """Whether a process ends within some time, as one that was killed does on a busy machine."""
    end = time.monotonic() + seconds
    while alive(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


class Watcher(SweepObserver):
    """Keeps what it is told, and interrupts where a function of the progress is true."""

    def __init__(self, on_progress=lambda progress: False):
        self.events = []
        self.reports = []
        self.on_progress = on_progress

    def sweep_started(self, cells, complete, processes, threads):
        self.events.append(("sweep", len(cells), complete, processes))

    def cell_started(self, cell, resumed):
        self.events.append(("start", cell.name, resumed))

    def cell_ended(self, cell, status, error, seconds):
        self.events.append(("end", cell.name, status))

    def progressed(self, progress):
        self.reports.append(progress)
        if self.on_progress(progress):
            raise KeyboardInterrupt

    def sweep_ended(self, summary):
        self.events.append(("over", summary["status"]))
