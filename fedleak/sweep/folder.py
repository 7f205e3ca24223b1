"""A sweep's folder: its files, the state of its cells, and the locks of running processes."""

import csv
import fcntl
import io
import json
import os
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml

from fedleak.config import RunConfig
from fedleak.errors import BadInput, require
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import columns_of
from fedleak.sweep.study import Cell, Study

# The columns that identify an update; its number of rows is in the column batch_size.
UPDATE_COLUMNS = ("model", "attack", "round", "client")
# Seconds that a run has to shut down before it is killed; a federation needs about ten.
STOP_SECONDS = 15.0


class SweepFolder:
    """The files of one sweep.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.study = path / "study.yaml"
        self.summary = path / "summary.json"
        self.results = path / "results.csv"
        self.cells = path / "cells.csv"
        self._lock = path / "sweep.lock"
        self._locks = path / "locks"
        self._settings = path / "settings"

    def run(self, name: str) -> RunFolder:
        """The folder of a cell's run."""
        return RunFolder(self.path / "cells" / name)

    def settings(self, name: str) -> Path:
        """The configuration file of a cell's run."""
        return self._settings / f"{name}.yaml"

    def lock(self, name: str) -> Path:
        """The file that the process of a cell keeps locked; it contains the process's id."""
        return self._locks / name

    def check(self, hash_: str, *, resume: bool, overwrite: bool) -> None:
        """Check that the sweep may use the folder; nothing is written.

        Args:
            hash_: the study's hash.
            resume: whether to continue an existing sweep.
            overwrite: whether to delete an existing sweep.

        Raises:
            BadInput: if the folder has content and neither is set, if it is not a sweep's folder,
                or, with ``resume``, if it belongs to another study.
        """
        require(
            not (resume and overwrite),
            "Expected one of `--resume` and `--overwrite`, got both.",
        )
        if not self.path.exists() or (self.path.is_dir() and not self._content()):
            return
        require(
            self.study.is_file(),
            f"Expected the folder of a sweep or nothing at {self.path}, found something else: "
            "choose another `--output`.",
        )
        require(
            resume or overwrite,
            f"Expected no sweep at {self.path}, found one: continue it with `--resume`, replace it "
            "with `--overwrite`, or choose another `--output`.",
        )
        found = self.read_summary().get("study_hash", hash_)
        require(
            overwrite or found == hash_,
            f"Expected the study of {self.study} to resume it, got another one: repeat its "
            f"settings (`fedleak sweep {self.study}`) or `--overwrite`.",
        )

    @contextmanager
    def open(
        self, study: Study, cells: Sequence[Cell], hash_: str, *, resume: bool, overwrite: bool
    ) -> Iterator[None]:
        """Prepare the folder, and lock it against other sweeps within the block.

        Args:
            study: the study.
            cells: its cells.
            hash_: see :meth:`check`.
            resume: see :meth:`check`.
            overwrite: see :meth:`check`.

        Raises:
            BadInput: as :meth:`check`, and if another sweep is running in the folder.
        """
        self.check(hash_, resume=resume, overwrite=overwrite)
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock.open("a") as lock:
            require(
                _try_lock(lock),
                f"Expected no other sweep to be running in {self.path}, found one: wait until it "
                "ends, or choose another `--output`.",
            )
            self._stop_orphans()
            if overwrite:
                for path in self._content():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in (self._locks, self._settings, self.path / "cells"):
                path.mkdir(exist_ok=True)
            _write(self.study, yaml.safe_dump(study.to_dict(), sort_keys=False))
            self._write_cells(cells)
            try:
                yield
            finally:
                with suppress(OSError):
                    self._locks.rmdir()

    def prepare(self, cell: Cell) -> bool:
        """Write a cell's settings, and remove the folder of a run that had not begun.

        Args:
            cell: the cell.

        Returns:
            Whether there is a run to resume.
        """
        folder = self.run(cell.name)
        try:
            RunConfig.load(folder.config)
            begun = True
        except (BadInput, TypeError):
            # A run writes its configuration first. A run that was killed before has no results, and
            # its folder would be refused as that of another program.
            begun = folder.results.exists()
            if not begun and folder.path.exists():
                shutil.rmtree(folder.path)
        values = cell.config.to_dict() | {"output": str(folder.path)}
        _write(self.settings(cell.name), yaml.safe_dump(values, sort_keys=False))
        return begun

    def is_complete(self, cell: Cell) -> bool:
        """Whether the summary of a cell's run says that it is complete."""
        try:
            summary = json.loads(self.run(cell.name).summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(summary["status"] == "complete")

    def read_summary(self) -> dict[str, Any]:
        """The contents of summary.json; empty if the file does not exist."""
        if not self.summary.is_file():
            return {}
        summary: dict[str, Any] = json.loads(self.summary.read_text(encoding="utf-8"))
        return summary

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace summary.json in one step."""
        _write(self.summary, json.dumps(summary, indent=2) + "\n")

    def write_results(self, cells: Sequence[Cell]) -> None:
        """Replace results.csv, in one step, by the rows of the finished updates of all cells.

        The first column is the cell's name, since rows may differ only in a cell's settings.
        """
        rows = [
            {"cell": cell.name} | row
            for cell in cells
            for row in finished_rows(self.run(cell.name).results)
        ]
        text = io.StringIO()
        # Cells without LPIPS have no value in the column of cells with it.
        columns = ("cell", *columns_of(rows))
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _write(self.results, text.getvalue())

    def _write_cells(self, cells: Sequence[Cell]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["cell", *cells[0].axes, "folder", "config_hash"])
        for cell in cells:
            folder = self.run(cell.name).path.relative_to(self.path).as_posix()
            writer.writerow([cell.name, *cell.axes.values(), folder, cell.config.hash])
        _write(self.cells, text.getvalue())

    def _content(self) -> list[Path]:
        # The running sweep holds its lock.
        return [path for path in self.path.iterdir() if path != self._lock]

    def _stop_orphans(self) -> None:
        """Stop runs that a killed sweep has left behind, so that no cell runs twice."""
        for path in sorted(self._locks.glob("*")):
            stop_orphan(path)


def finished_rows(path: Path) -> list[dict[str, str]]:
    """The rows, as text, of the updates that are complete in a run's results.csv.

    The run may still be running or have been killed: incomplete rows and updates are left out.

    Args:
        path: results.csv, which need not exist.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
    found = Counter(_update_key(row) for row in rows)
    return [row for row in rows if found[_update_key(row)] >= int(row["batch_size"])]


def count_updates(path: Path) -> int:
    """The number of updates that are complete in a run's results.csv."""
    return len({_update_key(row) for row in finished_rows(path)})


def acquire_lock(path: Path) -> IO[str]:
    """Lock a new file; a process that inherits the open file holds the lock until it ends.

    Args:
        path: the lock file, which is created.

    Raises:
        BlockingIOError: if another process holds the lock.
    """
    file = path.open("w")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def signal_group(leader: int, number: signal.Signals) -> None:
    """Send a signal to all processes of a group; nothing happens if there are none."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def owner(pid: int) -> str:
    """What a lock file says of the process that holds it.

    Args:
        pid: its id on this machine.
    """
    return f"{pid} {socket.gethostname()}"


def stop_orphan(path: Path) -> None:
    """Stop the process that holds a lock, if one does, and remove the lock file.

    If the process is on another machine, or not known, wait until it ends.

    Args:
        path: the lock file.
    """
    with path.open("r+") as lock:
        if not _try_lock(lock):
            _stop_holder(lock)
    path.unlink()


def _stop_holder(lock: IO[str]) -> None:
    leader, _, host = lock.read().strip().partition(" ")
    with suppress(ProcessLookupError, PermissionError):
        # Every run leads a session of its own; if this one does not, the id has been reused.
        here = leader.isdigit() and host in ("", socket.gethostname())
        if here and os.getsid(int(leader)) == int(leader):
            os.kill(int(leader), signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while not (free := _try_lock(lock)) and time.monotonic() < deadline:
                time.sleep(0.1)
            signal_group(int(leader), signal.SIGKILL)  # its child processes may still run
            if free:
                return
    fcntl.flock(lock, fcntl.LOCK_EX)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _update_key(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in UPDATE_COLUMNS)


def _write(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader never sees an incomplete file."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
