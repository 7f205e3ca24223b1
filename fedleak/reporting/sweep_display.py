"""Live progress of a sweep: bars in a terminal, plain lines elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from fedleak.sweep import Cell, SweepObserver, SweepProgress


class SweepDisplay(SweepObserver):
    """Shows the finished cells, the running cells with their victims, and the time left.

    Use it as a context manager, which restores the terminal.

    Args:
        console: where to print.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            expand=True,
            disable=not console.is_terminal,
        )
        self._cells: TaskID | None = None
        self._running: dict[str, TaskID] = {}
        self._left: float | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def sweep_started(
        self, cells: Sequence[Cell], complete: int, processes: int, threads: int
    ) -> None:
        """See :class:`SweepObserver`."""
        before = f", {complete} of them already done" if complete else ""
        self._say(
            f"Sweep of {len(cells)} cells{before}; {processes} process(es), "
            f"{threads} thread(s) each"
        )
        self._cells = self._bars.add_task("cells", total=len(cells), completed=complete, note="")

    def cell_ended(self, cell: Cell, status: str, error: str | None, seconds: float) -> None:
        """See :class:`SweepObserver`."""
        reason = f": {error}" if error else ""
        left = f", about {duration(self._left)} left" if self._left is not None else ""
        self._say(f"  {cell.name}: {status} after {duration(seconds)}{reason}{left}")

    def progressed(self, progress: SweepProgress) -> None:
        """See :class:`SweepObserver`."""
        self._left = progress.left
        if self._cells is not None:
            left = "" if progress.left is None else f"{duration(progress.left)} left"
            self._bars.update(self._cells, completed=progress.complete, note=left)
        for name in [name for name in self._running if name not in progress.running]:
            self._bars.remove_task(self._running.pop(name))
        for name, (done, most) in progress.running.items():
            if name not in self._running:
                self._running[name] = self._bars.add_task(name, total=most, note="updates")
            self._bars.update(self._running[name], completed=done, total=most)

    def sweep_ended(self, summary: Mapping[str, Any]) -> None:
        """See :class:`SweepObserver`."""
        if summary["status"] != "complete":
            self._say(f"Sweep {summary['status']}; continue it with `--resume`.")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)


def duration(seconds: float) -> str:
    """A duration as text, such as ``8 s``, ``12 min`` or ``3.5 h``.

    Args:
        seconds: the duration in seconds.
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
