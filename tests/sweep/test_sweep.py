"""Grids, and the processes that work them off; but for one test, with a stand-in for the run.

The stand-in keeps the promises of a real one, which tests/test_experiment.py checks there: it
writes its configuration first, appends each finished update to results.csv at once, says at the end
that it is complete, and with --resume does what is missing. So what is shown here of a sweep that
is killed holds for real runs too.
"""

import csv
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fedleak.cli import main as cli
from fedleak.cli.arguments import parse
from fedleak.config import Federation, RunConfig, Victims
from fedleak.errors import BadInput
from fedleak.registry import class_path
from fedleak.runs.results import COLUMNS
from fedleak.sweep import (
    SweepObserver,
    expand,
    finished_rows,
    folder,
    load_study,
    run_command,
    run_sweep,
    schedule,
)
from fedleak.sweep.settings import fill_placeholders, merge_layers

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


# ------------------------------------------------------------------------------------ the grid


def test_cells_are_the_cross_product_with_the_last_axis_fastest(tmp_path):
    cells = expand(study_of(tmp_path))
    assert [cell.name for cell in cells] == NAMES
    assert cells[1].axes == {"model": "smlp", "seed": "1"}
    assert cells[1].config.seed == 1
    assert cells[2].config.model_name == "lenet"
    assert {cell.config.federation.clients for cell in cells} == {3}
    assert {cell.config.attacks[0].init_args["iterations"] for cell in cells} == {7}


def test_long_and_short_forms_of_values(tmp_path):
    grid = {
        "defence": [
            {"name": "none"},
            {"name": "PRECODE, K=64", "set": {"model.precode.bottleneck_size": 64}},
        ],
        "size": [{"federation.batch_size": 2, "federation": {"rounds": 3}}],
        "attacks": ["nra"],
    }
    cells = expand(study_of(tmp_path, grid=grid))
    assert cells[1].axes == {
        "defence": "PRECODE, K=64", "size": "batch_size=2 rounds=3", "attacks": "nra",
    }  # fmt: skip
    assert cells[1].name == "PRECODE-K=64_batch_size=2-rounds=3_nra"
    config = cells[1].config
    assert config.model.init_args == {"precode": {"bottleneck_size": 64}}
    assert (config.federation.batch_size, config.federation.rounds) == (2, 3)
    assert config.federation.clients == 3
    assert [plugin.class_path for plugin in config.attacks] == [class_path("attacks", "nra")]


def test_a_longer_name_wins_whatever_the_order_of_the_axes(tmp_path):
    grid = {"width": [{"name": "narrow", "set": {"model.width": 8}}], "model": ["dmlp"]}
    (cell,) = expand(study_of(tmp_path, grid=grid))
    assert cell.config.model_name == "dmlp"
    assert cell.config.model.init_args == {"width": 8}


def test_arguments_of_every_attack_or_of_one(tmp_path):
    base = BASE | {"attacks": ["iga", "nra"]}
    grid = {"size": [{"name": "s", "set": {"attacks.iterations": 5, "attacks.1.restarts": 2}}]}
    (cell,) = expand(study_of(tmp_path, base=base, grid=grid))
    assert [plugin.init_args for plugin in cell.config.attacks] == [
        {"iterations": 5}, {"iterations": 5, "restarts": 2},
    ]  # fmt: skip


def test_defences_are_a_list_of_plugins_too():
    assert merge_layers({"defenses": "pruning"}, {"defenses.0.ratio": 0.5}) == {
        "defenses": [{"class_path": "pruning", "init_args": {"ratio": 0.5}}]
    }
    with pytest.raises(BadInput, match="Expected `defenses` to be given"):
        merge_layers({}, {"defenses.ratio": 0.5})


def test_base_is_not_changed_by_cells(tmp_path):
    base = BASE | {"model": {"class_path": "smlp", "init_args": {"precode": {"beta": 0.1}}}}
    grid = {"k": [{"name": str(k), "set": {"model.precode.bottleneck_size": k}} for k in (1, 2)]}
    cells = expand(study_of(tmp_path, base=base, grid=grid))
    assert [cell.config.model.init_args["precode"] for cell in cells] == [
        {"beta": 0.1, "bottleneck_size": 1}, {"beta": 0.1, "bottleneck_size": 2},
    ]  # fmt: skip


def test_skip_leaves_combinations_out(tmp_path):
    study = study_of(tmp_path, skip=[{"model": "lenet", "seed": [0]}])
    assert [cell.name for cell in expand(study)] == [*NAMES[:2], NAMES[3]]
    with pytest.raises(BadInput, match="at least one cell"):
        expand(study_of(tmp_path, skip=[{"seed": [0, 1]}]))


def test_texts_take_the_names_of_the_cells_values(tmp_path):
    grid = {
        "model": ["smlp", "lenet"],
        "after": [
            {"name": "1 epoch", "set": {"weights": "runs/${model}_${seed}/${after}.safetensors"}},
            {"name": "none", "set": {"weights": None}},
        ],
        "seed": [3],
    }
    cells = expand(study_of(tmp_path, grid=grid))
    assert [cell.config.weights for cell in cells] == [
        "runs/smlp_3/1 epoch.safetensors",
        None,
        "runs/lenet_3/1 epoch.safetensors",
        None,
    ]
    nested = {"attacks": [{"init_args": {"path": "${model}", "iterations": 7}}]}
    assert fill_placeholders(nested, {"model": "smlp"}) == {
        "attacks": [{"init_args": {"path": "smlp", "iterations": 7}}]
    }


def test_names_of_cells_are_unique(tmp_path):
    values = [{"name": name, "set": {"seed": i}} for i, name in enumerate(["a b", "a/b", "A-B"])]
    cells = expand(study_of(tmp_path, grid={"x": values}))
    assert [cell.name for cell in cells] == ["a-b", "a-b-2", "A-B-3"]


def test_a_saved_study_reads_back_equal(tmp_path):
    study = study_of(tmp_path, skip=[{"model": "lenet", "seed": 0}], processes=2, threads=3)
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(study.to_dict()), encoding="utf-8")
    assert load_study(path) == study


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"grit": {}}, "Unknown key of a study `grit`.* Did you mean `grid`"),
        ({"grid": {}}, "Expected `grid` to hold the values of at least one axis"),
        ({"grid": {"seed": []}}, "Expected axis `seed` to be a list of at least one value"),
        ({"grid": {"seed": 3}}, "Expected axis `seed` to be a list"),
        ({"grid": {"seed": [1, 1]}}, "axis `seed` to have names of their own, got `1` twice"),
        ({"grid": {"cell": [1]}}, "Expected another name than `cell`"),
        ({"grid": {"modle": ["smlp"]}}, "Unknown setting in axis `modle` `modle`.*`model`"),
        ({"grid": {"x": [{"name": "y", "sett": {}}]}}, "Unknown key .* `sett`.*`set`"),
        ({"grid": {"x": [{"set": {"seed": 1}}]}}, "Expected every value of axis `x` to have a `n"),
        ({"grid": {"x": [[1]]}}, "write {name: ..., set: {...}}"),
        ({"grid": {"x": [{"name": "y", "set": 3}]}}, "Expected `set` in axis `x`"),
        ({"grid": {"x": [{"output": "there"}]}}, "Expected no `output` in axis `x`"),
        ({"base": {"output": "there"}}, "Expected no `output` in `base`"),
        ({"base": {"sede": 1}}, "Unknown setting in `base` `sede`.*`seed`"),
        ({"base": [1]}, "Expected `base` to be settings"),
        ({"grid": {"seed": [1], "x": [{"seed": 2}]}}, "`seed` and `x` both set `seed`"),
        ({"skip": [{"sed": 1}]}, "Unknown axis in `skip` `sed`.*`seed`"),
        ({"skip": [{"model": "lenets"}]}, "Unknown value of axis `model` in `skip`.*`lenet`"),
        ({"skip": {"model": "lenet"}}, "Expected `skip` to be a list"),
        ({"processes": 0}, "Expected `processes` to be a number from 1, got 0"),
        ({"threads": "two"}, "Expected `threads` to be a number from 1"),
    ],
)
def test_what_is_wrong_in_a_study_is_said(tmp_path, content, message):
    with pytest.raises(BadInput, match=message):
        study_of(tmp_path, **content)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"n": [{"federation.clients": 0}]}, "In cell `clients=0`: Expected `federation.clients`"),
        ({"n": [{"federation.client": 1}]}, "In cell `client=1`: Unknown.*`clients`"),
        ({"x": [{"seed": 0}, {"name": "nil"}]}, "`seed=0` and `nil` have the same settings"),
        ({"x": [{"name": "y", "set": {"attacks.3.restarts": 1}}]}, "one of the 1 attacks"),
        (
            {"x": [{"name": "y", "set": {"weights": "${z}"}}]},
            r"In cell `y`: Unknown axis behind \$ `z`: expected one of x",
        ),
    ],
)
def test_what_is_wrong_in_a_cell_is_said_before_anything_is_written(tmp_path, grid, message):
    with pytest.raises(BadInput, match=message):
        sweep(tmp_path, study=study_of(tmp_path, grid=grid))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"), [(None, "found none"), ("a: [", "Expected YAML"), ("3", "a mapping")]
)
def test_no_study_at_all(tmp_path, text, message):
    path = tmp_path / "study.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInput, match=message):
        load_study(path)


# ----------------------------------------------------------------------------------- the sweep


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


@pytest.mark.parametrize(
    ("federation", "victims", "updates"),
    [
        ({"clients": 10, "rounds": 3}, {}, 30),
        ({"clients": 10, "clients_per_round": 4, "rounds": 3}, {}, 12),
        ({"clients": 10, "clients_per_round": 4}, {"clients": [1, 7], "rounds": [1]}, 2),
    ],
)
def test_a_cell_is_expected_to_have_as_many_updates_as_there_can_be(
    federation, victims, updates, tmp_path
):
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


@pytest.mark.parametrize(
    ("code", "log", "message"),
    [
        (-9, [], "The run was ended by SIGKILL, as happens when memory runs out."),
        (-11, ["x"], "The run was ended by SIGSEGV."),
        (0, ["x"], "The run ended without being complete."),
        (3, [], "The run ended with code 3."),
        (1, ["Traceback", "RuntimeError: boom"], "RuntimeError: boom"),
    ],
)
def test_why_a_cell_failed(code, log, message):
    assert schedule._failure_reason(code, log) == message


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
            assert not alive(pid)
    assert len((output / "results.csv").read_text().splitlines()) > 2
    before = summary["cells"][0]["seconds"]
    summary = sweep(tmp_path, resume=True)
    assert summary["status"] == "complete"
    assert summary["cells"][0]["seconds"] > before
    assert_whole(output)


def test_killed_sweep_resumes_with_no_victim_twice_and_none_missing(tmp_path, monkeypatch):
    """kill -9 leaves the runs behind; the next sweep stops them before it goes on with theirs."""
    study_of(tmp_path)
    output = tmp_path / "out"
    script = tmp_path / "killed.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from fedleak.sweep import load_study, run_sweep\n"
        "from tests.sweep.test_sweep import fake\n"
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


def test_finished_rows_leave_out_what_is_half_written(tmp_path):
    path = tmp_path / "results.csv"
    assert finished_rows(path) == []
    rows = [f"1,{client},{sample},iga,none,smlp,photos,2" for client in (0, 1) for sample in (0, 1)]
    whole = [",".join(COLUMNS), *(row + "," * 8 for row in rows)]
    path.write_text("\n".join(whole[:4]) + "\n" + whole[4][:9])
    assert [row["client"] for row in finished_rows(path)] == ["0", "0"]
    assert folder.count_updates(path) == 1
    path.write_text("\n".join(whole) + "\n")
    assert folder.count_updates(path) == 2


# ---------------------------------------------------------------------------------- the folder


def test_what_is_there_is_left_alone_unless_told_otherwise(tmp_path):
    sweep(tmp_path)
    output = tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    with pytest.raises(BadInput, match=r"Expected no sweep at .*--resume.*--overwrite"):
        sweep(tmp_path)
    with pytest.raises(BadInput, match="got both"):
        sweep(tmp_path, resume=True, overwrite=True)
    other = study_of(tmp_path, grid={"seed": [5]})
    with pytest.raises(BadInput, match=r"Expected the study of .* to resume it, got another"):
        sweep(tmp_path, study=other, resume=True)
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    # The number of processes makes no other study.
    study_of(tmp_path, processes=4)
    assert sweep(tmp_path, resume=True)["status"] == "complete"
    assert states(sweep(tmp_path, study=other, overwrite=True)) == {"seed5": "complete"}
    assert [path.name for path in (output / "cells").iterdir()] == ["seed5"]


def test_the_folder_of_something_else_is_refused(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "config.yaml").write_text("seed: 0")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(BadInput, match="Expected the folder of a sweep or nothing"):
            sweep(tmp_path, **flags)
    assert [path.name for path in output.iterdir()] == ["config.yaml"]


def test_two_sweeps_do_not_work_in_one_folder(tmp_path):
    class Second(SweepObserver):
        def cell_started(self, cell, resumed):
            with pytest.raises(BadInput, match="Expected no other sweep to be running in"):
                sweep(tmp_path, resume=True)

    assert sweep(tmp_path, Second())["status"] == "complete"


def test_number_of_processes_is_checked(tmp_path):
    with pytest.raises(BadInput, match="Expected `processes` to be a number from 1, got 0"):
        sweep(tmp_path, processes=0)


# -------------------------------------------------------------------------------------- for real


def test_command_of_a_run_is_understood(tmp_path):
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
