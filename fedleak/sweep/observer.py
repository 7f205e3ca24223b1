"""The events of a sweep, and the base class of their observers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedleak.sweep.study import Cell


@dataclass(frozen=True)
class SweepProgress:
    """The progress of a sweep.

    Args:
        cells: number of cells.
        complete: number of complete cells, including those of earlier sweeps.
        failed: number of cells that failed in this sweep.
        victims: number of updates attacked so far in all cells.
        running: for each running cell, by name, the number of updates attacked so far, and their
            maximum number (attacks that refuse the model are counted in it).
        seconds: seconds since this sweep started.
        left: estimate of the seconds left, from the times of the complete cells and the progress of
            the running ones; None before the first cell is complete.
    """

    cells: int
    complete: int
    failed: int
    victims: int
    running: dict[str, tuple[int, int]]
    seconds: float
    left: float | None


class SweepObserver:
    """Base class of observers of a sweep; a subclass overrides the events that it handles."""

    def sweep_started(
        self, cells: Sequence[Cell], complete: int, processes: int, threads: int
    ) -> None:
        """A sweep starts; ``complete`` cells are complete from an earlier sweep."""

    def cell_started(self, cell: Cell, resumed: bool) -> None:
        """A cell's process has been started."""

    def cell_ended(self, cell: Cell, status: str, error: str | None, seconds: float) -> None:
        """A cell's process has ended; ``status`` is complete, failed or interrupted."""

    def progressed(self, progress: SweepProgress) -> None:
        """Called about every second, and when a cell has started or ended."""

    def sweep_ended(self, summary: Mapping[str, Any]) -> None:
        """The sweep has ended; ``summary`` is the content of summary.json."""
