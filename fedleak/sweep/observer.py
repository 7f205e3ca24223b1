"""What happens in a sweep, for whoever wants to watch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedleak.sweep.study import Cell


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep has come.

    Args:
        cells: number of cells.
        complete: how many are complete, earlier sweeps included.
        failed: how many have failed in this one.
        victims: updates attacked so far in all cells.
        running: for each running cell, by name, the updates attacked so far in it, and how many
            there will be at most (an attack that a model is no match for is left out).
        seconds: since this sweep began.
        left: estimate of the seconds left, from those of the complete cells and what the running
            ones have done; none before the first cell is complete.
    """

    cells: int
    complete: int
    failed: int
    victims: int
    running: dict[str, tuple[int, int]]
    seconds: float
    left: float | None


class SweepObserver:
    """Told of every event of a sweep; a subclass overrides what it cares about."""

    def sweep_started(
        self, cells: Sequence[Cell], complete: int, processes: int, threads: int
    ) -> None:
        """A sweep begins, of which ``complete`` cells are done from before."""

    def cell_started(self, cell: Cell, resumed: bool) -> None:
        """A cell's process has been started."""

    def cell_ended(self, cell: Cell, status: str, error: str | None, seconds: float) -> None:
        """A cell's process has ended; ``status`` is complete, failed or interrupted."""

    def progressed(self, progress: SweepProgress) -> None:
        """Called about every second, and whenever a cell has started or ended."""

    def sweep_ended(self, summary: Mapping[str, Any]) -> None:
        """The sweep is over; ``summary`` is what summary.json holds."""
