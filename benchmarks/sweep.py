"""What a second process brings to a study of many runs."""

import csv
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Entry
from fedleak.config import RunConfig
from fedleak.registry import class_path
from fedleak.sweep import Study, run_command, run_sweep
from fedleak.sweep.schedule import Command
from fedleak.sweep.study import Choice

Rows = list[dict[str, str]]


def sweep_two_process_speedup(
    cells: int = 2,
    iterations: int = 5000,
    clients: int = 8,
    command: Command = run_command,
) -> Entry:
    """Wall time of a study with one process, over that with two, one thread each.

    Args:
        cells: number of runs.
        iterations: iterations of each run's attack.
        clients: number of victims of a run.
        command: makes the command line of a run.

    Raises:
        RuntimeError: if a run fails, or if one and two processes do not give the same rows.
    """
    study = Study(
        base={
            "data": {"class_path": class_path("data", "photos")},
            "model": {"class_path": class_path("models", "lenet")},
            "federation.clients": clients,
            "federation.rounds": 1,
            "federation.protocol": "fedsgd",
            "federation.batch_size": 1,
            "victims.labels": "known",
            "attacks": [
                {"class_path": class_path("attacks", "iga"), "init_args": _settings(iterations)}
            ],
        },
        axes={"seed": tuple(Choice(str(seed), {"seed": seed}) for seed in range(cells))},
        threads=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        one, alone, share = _timed(study, Path(folder) / "one", 1, command)
        two, together, _ = _timed(study, Path(folder) / "two", 2, command)
    if alone != together:
        raise RuntimeError("Expected the same rows from 1 and 2 processes, got other ones.")
    return {
        "value": one / two,
        "unit": "times the speed of one process",
        "setting": f"a study of {cells} cells, each a `fedleak run`: photos 3x32x32, LeNet with "
        f"sigmoid (untrained), {clients} clients, batch size 1, labels known, IGA with "
        f"{iterations} iterations, 1 thread a process; wall time of the sweep with 1 process "
        f"({one:.0f} s, of which {share:.0%} in attacks) compared with 2 processes ({two:.0f} s); "
        "both gave the same rows",
    }


def _settings(iterations: int) -> dict[str, Any]:
    # All of a run's victims in one computation, whatever the default is.
    return {"iterations": iterations, "at_once": 16}


def _timed(
    study: Study, folder: Path, processes: int, command: Command
) -> tuple[float, Rows, float]:
    """Seconds of the sweep, its rows without their times, and the share of time in attacks."""
    started = time.perf_counter()
    summary = run_sweep(study, folder, RunConfig.from_dict, processes=processes, command=command)
    seconds = time.perf_counter() - started
    failed = [cell for cell in summary["cells"] if cell["status"] != "complete"]
    if failed:
        raise RuntimeError(f"Expected complete runs, but {failed[0]['name']}: {failed[0]}")
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    attacking = sum(float(row["seconds"] or 0) for row in rows)
    return seconds, _without_times(rows), attacking / seconds


def _without_times(rows: Sequence[dict[str, str]]) -> Rows:
    return [{name: text for name, text in row.items() if name != "seconds"} for row in rows]
