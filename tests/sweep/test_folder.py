"""The folder of a sweep."""

import pytest

from fedleak.errors import BadInput
from fedleak.runs.results import COLUMNS
from fedleak.sweep import SweepObserver, expand, finished_rows, folder
from tests.sweep.sweeps import states, study_of, sweep


def test_finished_rows_leave_out_incomplete_updates(tmp_path):
    path = tmp_path / "results.csv"
    assert finished_rows(path) == []
    rows = [f"1,{client},{sample},iga,none,smlp,photos,2" for client in (0, 1) for sample in (0, 1)]
    whole = [",".join(COLUMNS), *(row + "," * 8 for row in rows)]
    path.write_text("\n".join(whole[:4]) + "\n" + whole[4][:9])
    assert [row["client"] for row in finished_rows(path)] == ["0", "0"]
    assert folder.count_updates(path) == 1
    path.write_text("\n".join(whole) + "\n")
    assert folder.count_updates(path) == 2


def test_an_existing_sweep_is_kept_unless_overwrite_is_set(tmp_path):
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


def test_a_folder_that_is_not_a_sweeps_is_refused(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "config.yaml").write_text("seed: 0")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(BadInput, match="Expected the folder of a sweep or nothing"):
            sweep(tmp_path, **flags)
    assert [path.name for path in output.iterdir()] == ["config.yaml"]


def test_two_sweeps_cannot_run_in_one_folder(tmp_path):
    class Second(SweepObserver):
        def cell_started(self, cell, resumed):
            with pytest.raises(BadInput, match="Expected no other sweep to be running in"):
                sweep(tmp_path, resume=True)

    assert sweep(tmp_path, Second())["status"] == "complete"


def test_a_lock_is_held_until_its_file_is_closed(tmp_path):
    path = tmp_path / "lock"
    with folder.acquire_lock(path), pytest.raises(BlockingIOError):
        folder.acquire_lock(path)
    folder.acquire_lock(path).close()


def test_results_of_a_running_cell_are_in_the_sweeps_results(tmp_path):
    sweep(tmp_path, study=study_of(tmp_path, grid={"seed": [0]}))
    files = folder.SweepFolder(tmp_path / "out")
    (cell,) = expand(study_of(tmp_path, grid={"seed": [0]}))
    path = files.run(cell.name).results
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:5])
    files.write_results([cell])
    rows = finished_rows(files.results)
    assert [(row["cell"], row["client"]) for row in rows] == [("seed0", "0"), ("seed0", "1")]


def test_a_cell_is_complete_if_its_run_says_so(tmp_path):
    files = folder.SweepFolder(tmp_path)
    (cell,) = expand(study_of(tmp_path, grid={"seed": [0]}))
    assert not files.is_complete(cell)
    summary = files.run(cell.name).summary
    summary.parent.mkdir(parents=True)
    for text, expected in (("", False), ('{"status": "failed"}', False),
                           ('{"status": "complete"}', True)):  # fmt: skip
        summary.write_text(text)
        assert files.is_complete(cell) is expected
