"""The processes of a sweep: started, stopped, killed and resumed."""

import csv
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fedleak.cli import main as cli
from fedleak.cli.arguments import parse
from fedleak.config import Federation, RunConfig, Victims
from fedleak.errors import BadInput
from fedleak.sweep import expand, finished_rows, folder, run_command, run_sweep, schedule
from tests.sweep.sweeps import (
    BASE,
    NAMES,
    Watcher,
    alive,
    assert_whole,
    ended,
    states,
    study_of,
    sweep,
)

# ----------------------------------------------------------------------------------- the sweep


@pytest.mark.parametrize(
    ("federation", "victims", "updates"),
    [
        ({"clients": 10, "rounds": 3}, {}, 30),
        ({"clients": 10, "clients_per_round": 4, "rounds": 3}, {}, 12),
        ({"clients": 10, "clients_per_round": 4}, {"clients": [1, 7], "rounds": [1]}, 2),
    ],
)
def test_expected_number_of_updates_of_a_cell(federation, victims, updates, tmp_path):
    (cell, *_) = expand(study_of(tmp_path))
    config = replace(
        cell.config,
        federation=Federation(**federation),
        victims=Victims(**victims),
        attacks=2 * cell.config.attacks,
    )
    assert schedule._CellState(replace(cell, config=config), "pending").expected == 2 * updates


def test_a_sweep_from_beginning_to_end(tmp_path):
    watcher = Watcher()
    summary = sweep(tmp_path, watcher)
    output = tmp_path / "out"
    assert summary["status"] == "complete"
    assert summary == json.loads((output / "summary.json").read_text())
    assert set(states(summary).values()) == {"complete"}
    assert summary["cells"][3]["axes"] == {"model": "lenet", "seed": "1"}
    assert all(cell["error"] is None and cell["seconds"] > 0 for cell in summary["cells"])
    assert_whole(output)
    with (output / "cells.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["cell"], row["model"], row["seed"]) for row in rows][2:] == [
        ("lenet_seed0", "lenet", "0"), ("lenet_seed1", "lenet", "1"),
    ]  # fmt: skip
    for row, cell in zip(rows, expand(study_of(tmp_path)), strict=True):
        config = RunConfig.load(output / row["folder"] / "config.yaml")
        assert config.hash == cell.config.hash == row["config_hash"]
        assert config.output == str(output / row["folder"])
    assert watcher.events[0] == ("sweep", 4, 0, 1)
    assert watcher.events[1:3] == [("start", NAMES[0], False), ("end", NAMES[0], "complete")]
    assert watcher.events[-1] == ("over", "complete")
    last = watcher.reports[-1]
    assert (last.complete, last.cells, last.victims, last.left) == (4, 4, 12, 0.0)
    assert watcher.reports[0].left is None
    # Nothing of the sweep's own making stays behind.
    assert sorted(path.name for path in output.iterdir()) == [
        "cells", "cells.csv", "results.csv", "settings", "study.yaml", "summary.json", "sweep.lock",
    ]  # fmt: skip


def test_cells_share_the_cores_and_run_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "available_cores", lambda: 7)
    monkeypatch.setattr(schedule, "REPORT_SECONDS", 0.05)

    def go_on(progress):
        # Finished victims show before their cell has ended.
        if list(progress.running.values()) == [(1, 3)] * 3:
            (tmp_path / "out" / "cells" / "go").touch()

    watcher = Watcher(on_progress=go_on)
    sweep(tmp_path, watcher, fake_settings={"hold": 1}, processes=3)
    assert watcher.events[0] == ("sweep", 4, 0, 3)
    assert max(len(progress.running) for progress in watcher.reports) == 3
    for name in NAMES:
        threads = json.loads((tmp_path / "out" / "cells" / name / "threads.json").read_text())
        assert threads == {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}


def test_a_failed_cell_is_recorded_and_tried_again(tmp_path):
    watcher = Watcher()
    summary = sweep(tmp_path, watcher, fake_settings={"fail": "smlp_seed1"})
    assert summary["status"] == "failed"
    assert list(states(summary).values()) == ["complete", "failed", "complete", "complete"]
    failed = summary["cells"][1]
    assert failed["error"] == "Expected better weather, got rain."
    assert failed["log"] == ["line 2", "fedleak: Expected better weather, got rain."]
    assert "log" not in summary["cells"][0]
    assert watcher.reports[-1].failed == 1
    watcher = Watcher()
    summary = sweep(tmp_path, watcher, resume=True)
    assert [event for event in watcher.events if event[0] == "start"] == [
        ("start", "smlp_seed1", True)
    ]
    assert watcher.events[0] == ("sweep", 4, 3, 1)
    assert summary["status"] == "complete"
    assert summary["cells"][1]["error"] is None
    assert summary["cells"][1]["seconds"] > failed["seconds"]
    assert_whole(tmp_path / "out")


def test_an_interrupted_sweep_stops_its_runs_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "STOP_SECONDS", 0.5)
    monkeypatch.setattr(schedule, "REPORT_SECONDS", 0.05)
    # One run heeds the request to end, the other one does not; both have a child of their own.
    settings = {"hold": 1, "stubborn": "smlp_seed1", "children": True}
    watcher = Watcher(on_progress=lambda progress: progress.victims == 2)
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, watcher, fake_settings=settings, processes=2)
    output = tmp_path / "out"
    summary = json.loads((output / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert list(states(summary).values()) == ["interrupted"] * 2 + ["pending"] * 2
    assert watcher.events[-1] == ("over", "interrupted")
    for name in NAMES[:2]:
        for pid in json.loads((output / "cells" / name / "pids.json").read_text()):
            assert ended(pid)
    assert len((output / "results.csv").read_text().splitlines()) > 2
    before = summary["cells"][0]["seconds"]
    summary = sweep(tmp_path, resume=True)
    assert summary["status"] == "complete"
    assert summary["cells"][0]["seconds"] > before
    assert_whole(output)


def test_killed_sweep_resumes_with_no_victim_twice_and_none_missing(tmp_path, monkeypatch):
    """kill -9 leaves the runs behind; the next sweep stops them before it resumes their cells."""
    study_of(tmp_path)
    output = tmp_path / "out"
    script = tmp_path / "killed.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from fedleak.sweep import load_study, run_sweep\n"
        "from tests.sweep.sweeps import fake\n"
        "study, out = load_study(Path('study.yaml')), Path('out')\n"
        "command = fake(hold=1, stubborn='smlp_seed1')\n"
        "run_sweep(study, out, processes=2, command=command)\n"
    )
    root = str(Path(__file__).parents[2])
    victim = subprocess.Popen([sys.executable, str(script), root], cwd=tmp_path)
    results = [output / "cells" / name / "results.csv" for name in NAMES[:2]]
    while sum(len(finished_rows(path)) for path in results) < 2:
        assert victim.poll() is None
        time.sleep(0.02)
    victim.kill()
    victim.wait()
    files = [output / "cells" / name / "pids.json" for name in NAMES[:2]]
    orphans = [pid for file in files for pid in json.loads(file.read_text())]
    assert all(alive(pid) for pid in orphans)
    assert json.loads((output / "summary.json").read_text())["status"] == "running"

    monkeypatch.setattr(folder, "STOP_SECONDS", 0.3)
    summary = sweep(tmp_path, resume=True)
    assert summary["status"] == "complete"
    assert not any(alive(pid) for pid in orphans)
    assert_whole(output)


def test_a_sweep_killed_at_any_other_moment_resumes(tmp_path):
    sweep(tmp_path)
    output = tmp_path / "out"
    cells = output / "cells"
    # Before a run had written its configuration.
    (cells / NAMES[0] / "config.yaml").write_text("")
    (cells / NAMES[0] / "results.csv").unlink()
    (cells / NAMES[0] / "summary.json").unlink()
    # In the middle of a row.
    with (cells / NAMES[1] / "results.csv").open("a") as file:
        file.write("1,7,0,iga,no")
    (cells / NAMES[1] / "summary.json").write_text('{"status": "running", "config_h')
    # After the last run, before the sweep had taken note; results.csv is stale, too.
    summary = json.loads((output / "summary.json").read_text())
    for cell in summary["cells"]:
        cell["status"] = "running"
    (output / "summary.json").write_text(json.dumps(summary))
    (output / "results.csv").unlink()
    watcher = Watcher()
    sweep(tmp_path, watcher, resume=True)
    assert [event for event in watcher.events if event[0] == "start"] == [
        ("start", NAMES[0], False), ("start", NAMES[1], True),
    ]  # fmt: skip
    assert_whole(output)


# ---------------------------------------------------------------------------------- the folder


def test_number_of_processes_is_checked(tmp_path):
    with pytest.raises(BadInput, match="Expected `processes` to be a number from 1, got 0"):
        sweep(tmp_path, processes=0)


# -------------------------------------------------------------------------------------- for real


def test_the_command_line_of_a_run_is_valid(tmp_path):
    settings = tmp_path / "cell.yaml"
    (cell, *_) = expand(study_of(tmp_path))
    settings.write_text(yaml.safe_dump(cell.config.to_dict()))
    for resume in (False, True):
        command = run_command(settings, tmp_path / "cell", resume)
        assert command[:3] == [sys.executable, "-m", "fedleak.cli.main"]
        chosen = parse(command[3:]).run
        assert chosen.resume is resume
        assert cli._run_config(chosen).output == str(tmp_path / "cell")


@pytest.mark.slow
def test_two_real_cells(tmp_path):
    base = BASE | {"federation": {"clients": 2}, "attacks": ["iga"]}
    grid = {
        "model": [{"name": "tiny", "set": {"model.width": 8, "attacks.iterations": 5}}],
        "seed": [0, 1],
    }
    study = study_of(tmp_path, base=base, grid=grid)
    summary = run_sweep(study, tmp_path / "out", processes=2)
    assert [cell["error"] for cell in summary["cells"]] == [None, None]
    assert summary["status"] == "complete"
    rows = finished_rows(tmp_path / "out" / "results.csv")
    assert [(row["client"], row["iterations"]) for row in rows] == [("0", "5"), ("1", "5")] * 2
    assert len({row["mse"] for row in rows}) == 4
