"""How much faster a sweep of several runs is with a second process."""

import csv
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure, median, ratios
from fedleak.registry import class_path
from fedleak.sweep import Study, run_command, run_sweep
from fedleak.sweep.schedule import Command
from fedleak.sweep.study import Choice

Rows = list[dict[str, str]]


def sweep_two_process_speedup(
    cells: int = 2,
    iterations: int = 2000,
    clients: int = 8,
    repetitions: int = 3,
    command: Command = run_command,
) -> Figure:
    """Wall time of a sweep with one process, over that with two, one thread each.

    Args:
        cells: number of runs.
        iterations: iterations of each run's attack.
        clients: number of victims of a run.
        repetitions: number of timed sweeps of each side; one more of each, of a single iteration,
            comes first and is not timed.
        command: makes the command line of a run.

    Raises:
        RuntimeError: if a run fails, or if one and two processes do not give the same rows.
    """
    seconds: dict[int, list[float]] = {1: [], 2: []}
    shares: list[float] = []
    for repetition in range(repetitions + 1):
        study = _study(cells, iterations if repetition else 1, clients)
        rows = {}
        for processes in seconds:
            with tempfile.TemporaryDirectory() as folder:
                took, rows[processes], share = _timed(
                    study, Path(folder) / "sweep", processes, command
                )
            if repetition:
                seconds[processes].append(took)
                shares += [share] if processes == 1 else []
        if rows[1] != rows[2]:
            raise RuntimeError("Expected the same rows from 1 and 2 processes, got other ones.")
    samples = ratios(seconds[1], seconds[2])
    return Figure(
        value=median(samples),
        unit="times the speed of one process",
        samples=samples,
        of="pairs of sweeps in turn",
        setting={
            "attack": "iga", "model": "LeNet (sigmoid), untrained", "data": "photos 3x32x32",
            "runs": cells, "victims": clients, "batch_size": 1, "labels": "known",
            "iterations": iterations, "threads": 1,
        },
        details={
            "one_process_seconds": median(seconds[1]),
            "two_processes_seconds": median(seconds[2]),
            "share_in_attacks": median(shares),
        },
    )  # fmt: skip


def _study(cells: int, iterations: int, clients: int) -> Study:
    return Study(
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


def _settings(iterations: int) -> dict[str, Any]:
    # All of a run's victims in one computation, whatever the default is.
    return {"iterations": iterations, "at_once": 16}


def _timed(
    study: Study, folder: Path, processes: int, command: Command
) -> tuple[float, Rows, float]:
    """Seconds of the sweep, its rows without their times, and the share of time in attacks."""
    started = time.perf_counter()
    summary = run_sweep(study, folder, processes=processes, command=command)
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
