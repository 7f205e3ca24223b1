"""The processes of a sweep: each cell is an ordinary run, and several run at once.

A run appends every finished update to its own results.csv and can be resumed, so a sweep that was
stopped or killed only has to restart the cells that are not complete.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedleak.errors import require
from fedleak.metrics import require_alexnet
from fedleak.runs.summary import Status
from fedleak.runtime.memory_pages import use_large_pages
from fedleak.runtime.threads import available_cores
from fedleak.sweep.folder import STOP_SECONDS, SweepFolder, count_updates
from fedleak.sweep.observer import SweepObserver, SweepProgress
from fedleak.sweep.processes import (
    LOST,
    THREAD_VARIABLES,
    CellProcess,
    Launch,
    LocalProcess,
    failure_reason,
)
from fedleak.sweep.study import Cell, Study, expand, study_hash

# Builds a cell's command line from its configuration, its folder, and whether to resume a run.
Command = Callable[[Path, Path, bool], list[str]]

POLL_SECONDS = 0.1
REPORT_SECONDS = 1.0
# How often a cell whose Ray worker has died is continued.
RETRIES = 3


def run_command(settings: Path, folder: Path, resume: bool) -> list[str]:
    """The command line of a run.

    Args:
        settings: its configuration.
        folder: its folder.
        resume: whether to continue an existing run.
    """
    command = [sys.executable, "-m", "fedleak.cli.main", "run", "--config", str(settings)]
    return [*command, "--output", str(folder), *(["--resume"] if resume else [])]


def run_sweep(
    study: Study,
    output: Path,
    observer: SweepObserver | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    processes: int | None = None,
    command: Command = run_command,
    launch: Launch = LocalProcess,
) -> dict[str, Any]:
    """Run the cells of a study, several at once, and write the results to a folder.

    Args:
        study: the study.
        output: the sweep's folder.
        observer: notified of events.
        resume: whether to continue an existing sweep; complete cells are not run again.
        overwrite: whether to delete an existing sweep.
        processes: number of cells that run at once, at least 1. If None, the study's setting.
        command: builds the command line of a cell.
        launch: starts the process of a cell.

    Returns:
        The contents of summary.json.

    Raises:
        BadInput: if the study, the folder or ``processes`` is invalid; nothing is written then.
        KeyboardInterrupt: if interrupted; running cells are stopped, and can be resumed.
    """
    require(
        processes is None or processes >= 1,
        f"Expected `processes` to be a number from 1, got {processes}.",
    )
    cells = expand(study)
    if any(cell.config.metrics.lpips for cell in cells):
        require_alexnet()
    folder, hash_ = SweepFolder(output), study_hash(cells)
    with folder.open(study, cells, hash_, resume=resume, overwrite=overwrite):
        sweep = _Sweep(folder, cells, hash_, observer or SweepObserver(), command, launch)
        sweep.run(processes or study.processes, study.threads)
    return sweep.summary


@dataclass
class _CellState:
    """A cell's status and progress."""

    cell: Cell
    status: str
    error: str | None = None
    log: list[str] = field(default_factory=list)
    before: float = 0.0  # seconds of earlier sweeps
    started: float | None = None
    ended: float | None = None
    lost: int = 0  # how often the Ray worker has died
    updates: int = 0
    size: int = -1

    @property
    def seconds(self) -> float:
        if self.started is None:
            return self.before
        return self.before + (self.ended or time.monotonic()) - self.started

    @property
    def expected(self) -> int:
        """The maximum number of updates that will be attacked.

        At least those that were, where the number of clients is that of samples not loaded here.
        """
        config, federation = self.cell.config, self.cell.config.federation
        chosen = config.victims.clients
        numbers = [
            federation.known_size if chosen is None else len(chosen), federation.clients_per_round,
        ]  # fmt: skip
        clients = min((number for number in numbers if number is not None), default=1)
        rounds = len(config.victims.rounds or range(federation.rounds))
        expected = clients * rounds * len(config.attacks) * len(config.variants)
        return max(expected, self.updates)

    def left(self, mean: float) -> float:
        """Estimate the seconds left: from the cell's own speed if known, or from other cells.

        Args:
            mean: mean seconds of the complete cells.
        """
        if self.updates:
            return self.seconds * max(0, self.expected - self.updates) / self.updates
        return max(0.0, mean - self.seconds)

    def entry(self) -> dict[str, Any]:
        entry = {
            "name": self.cell.name, "axes": self.cell.axes, "status": self.status,
            "error": self.error, "seconds": round(self.seconds, 3),
        }  # fmt: skip
        return entry | {"log": self.log} if self.log else entry


@dataclass
class _Child:
    """A cell's process."""

    work: _CellState
    process: CellProcess


class _Sweep:
    """A sweep in progress."""

    def __init__(
        self,
        folder: SweepFolder,
        cells: Sequence[Cell],
        hash_: str,
        observer: SweepObserver,
        command: Command,
        launch: Launch,
    ) -> None:
        self._folder = folder
        self._cells = cells
        self._hash = hash_
        self._observer = observer
        self._command = command
        self._launch = launch
        self._waiting: list[_CellState] = []
        self._children: list[_Child] = []
        self._started = self._reported = time.monotonic()
        self.summary: dict[str, Any] = {}
        earlier = {item["name"]: item for item in folder.read_summary().get("cells", [])}
        # The run's own summary decides: the sweep may have been killed before it recorded the end.
        self._work = [
            _CellState(
                cell,
                "complete" if folder.is_complete(cell) else "pending",
                before=earlier.get(cell.name, {}).get("seconds", 0.0),
            )
            for cell in cells
        ]

    def run(self, processes: int, threads: int | None) -> None:
        """Run all cells that are not complete."""
        waiting = self._waiting = [work for work in self._work if work.status == "pending"]
        processes = max(1, min(processes, len(waiting)))
        self._processes = processes
        self._threads = threads or max(1, available_cores() // processes)
        complete = len(self._work) - len(waiting)
        self._observer.sweep_started(self._cells, complete, processes, self._threads)
        status: Status = "failed"
        self._write("running")
        try:
            while waiting or self._children:
                while waiting and len(self._children) < processes:
                    self._start(waiting.pop(0))
                time.sleep(POLL_SECONDS)
                self._watch()
            if all(work.status == "complete" for work in self._work):
                status = "complete"
        except (KeyboardInterrupt, SystemExit):
            status = "interrupted"
            raise
        finally:
            self._stop()
            for work in self._work:
                if work.status == "running":  # interrupted between its start and its end
                    work.status = "interrupted"
            self._folder.write_results(self._cells)
            self._write(status)
            self._observer.sweep_ended(self.summary)

    def _start(self, work: _CellState) -> None:
        name = work.cell.name
        resumed = self._folder.prepare(work.cell)
        command = self._command(self._folder.settings(name), self._folder.run(name).path, resumed)
        work.status, work.started = "running", time.monotonic()
        process = self._launch(command, self._environment(), self._folder.lock(name))
        self._children.append(_Child(work, process))
        self._observer.cell_started(work.cell, resumed)
        self._report()

    def _environment(self) -> dict[str, str]:
        # Colours would appear as control characters in the error of a failed cell.
        environment = {n: v for n, v in os.environ.items() if n != "FORCE_COLOR"}
        use_large_pages(environment)
        return environment | dict.fromkeys(THREAD_VARIABLES, str(self._threads))

    def _watch(self) -> None:
        """Handle processes that have ended, and report the progress regularly."""
        for child in list(self._children):
            code = child.process.poll()
            if code is not None:
                self._children.remove(child)
                self._ended(child, code, stopped=False)
                self._folder.write_results(self._cells)
                self._report()
        if time.monotonic() - self._reported >= REPORT_SECONDS:
            self._report()

    def _ended(self, child: _Child, code: int, *, stopped: bool) -> None:
        work = child.work
        self._folder.lock(work.cell.name).unlink(missing_ok=True)
        work.ended = time.monotonic()
        if self._folder.is_complete(work.cell) and (code == 0 or stopped):
            work.status = "complete"
        elif stopped:
            work.status = "interrupted"
        elif code == LOST and work.lost < RETRIES:
            # Another worker goes on where the run was.
            work.status, work.before, work.started = "pending", work.seconds, None
            work.ended, work.lost = None, work.lost + 1
            self._waiting.insert(0, work)
            return
        else:
            work.status, work.log = "failed", child.process.lines()
            work.error = failure_reason(code, work.log)
        self._observer.cell_ended(work.cell, work.status, work.error, work.seconds)

    def _stop(self) -> None:
        """Terminate running processes, and kill them if they have not ended after a time limit."""
        for child in self._children:
            child.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        # A second Ctrl-C ends the waiting.
        with suppress(KeyboardInterrupt):
            for child in self._children:
                child.process.wait(deadline - time.monotonic())
        for child in self._children:
            child.process.kill()
            self._ended(child, child.process.poll() or 0, stopped=True)
        self._children = []

    def _write(self, status: Status) -> None:
        self.summary = {
            "status": status,
            "study_hash": self._hash,
            "cells": [work.entry() for work in self._work],
        }
        self._folder.write_summary(self.summary)

    def _report(self) -> None:
        self._reported = time.monotonic()
        for work in self._work:
            path = self._folder.run(work.cell.name).results
            size = path.stat().st_size if path.exists() else 0
            if size != work.size:
                work.size, work.updates = size, count_updates(path)
        states = [work.status for work in self._work]
        progress = SweepProgress(
            cells=len(states),
            complete=states.count("complete"),
            failed=states.count("failed"),
            victims=sum(work.updates for work in self._work),
            running={
                child.work.cell.name: (child.work.updates, child.work.expected)
                for child in self._children
            },
            seconds=self._reported - self._started,
            left=self._left(),
        )
        # Written too, so that the times are known if the sweep is killed and resumed.
        self._write("running")
        self._observer.progressed(progress)

    def _left(self) -> float | None:
        known = [w.seconds for w in self._work if w.status == "complete" and w.seconds > 0]
        if not known:
            return None
        mean = sum(known) / len(known)
        open_ = [w for w in self._work if w.status in ("running", "pending")]
        left = sum(work.left(mean) for work in open_)
        return left / max(1, min(self._processes, len(open_)))
