"""Live progress of a run: bars in a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from fedleak import attacks
from fedleak.attacks.base import Reconstruction
from fedleak.runs.observer import Observer
from fedleak.runs.scoring import ImageScoring
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate

# Without a terminal, the least seconds between two lines of an attack's progress.
LINE_SECONDS = 10.0


class Display(Observer):
    """Shows rounds and clients, then victims with iteration, cost and time left.

    Use it as a context manager, which restores the terminal.

    Args:
        console: where to print.
        headline: column and title of the score that is shown, see
            :attr:`fedleak.runs.scoring.Scoring.headline`.
    """

    def __init__(self, console: Console, headline: tuple[str, str] = ImageScoring.headline) -> None:
        self._column, self._title = headline
        self._console = console
        self._live = console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._clients = 0
        self._iteration = 0
        self._last_line = time.monotonic()
        self._attack = ""
        self._scores: list[float] = []

    def __enter__(self) -> "Display":
        if self._live:
            self._bars.start()
            self._tasks["preparing"] = self._bars.add_task("preparing", total=None, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()

    def data_loaded(self, description: str) -> None:
        """See :class:`Observer`."""
        self._say(f"Data {description}")

    def federation_started(self, model: str, clients: int, first: int, rounds: int) -> None:
        """See :class:`Observer`."""
        these = f"rounds {first} to {rounds}" if first > 1 else _count(rounds, "round")
        self._clear()
        self._say(f"Federation of {_count(clients, 'client')} training {model}: {these}")
        self._clients = clients
        self._bar("rounds", f"{model}: rounds", rounds, first - 1)
        self._bar("clients", "  clients", clients, note="starting")

    def client_answered(
        self, model: str, round_: int, client: int, metrics: Mapping[str, float] | None
    ) -> None:
        """See :class:`Observer`."""
        self._update("clients", advance=1, note=f"client {client}")

    def client_failed(self, model: str, round_: int, client: int, reason: str) -> None:
        """See :class:`Observer`."""
        self._say(f"  round {round_}: client {client} failed: {_short(reason)}")
        self._update("clients", advance=1)

    def round_evaluated(self, model: str, round_: int, metrics: Mapping[str, float]) -> None:
        """See :class:`Observer`."""
        figures = ", ".join(f"{name.split('/')[-1]} {v:.4f}" for name, v in metrics.items())
        self._say(f"  round {round_}: {figures or 'done'}")
        self._update("rounds", completed=round_)
        if "clients" in self._tasks:
            self._bars.reset(self._tasks["clients"], total=self._clients, note="")

    def attack_started(self, attack: str, model: str, victims: int, done: int) -> None:
        """See :class:`Observer`."""
        before = f", {done} of them already done" if done else ""
        self._clear()
        self._say(f"Attack {attack} on {model}: {_count(victims, 'update')}{before}")
        self._attack = f"{attack} on {model}"
        self._bar("updates", f"{attack} on {model}: updates", victims, done)
        self._bar("iterations", "  iterations", 1)

    def attack_progressed(self, attack: str, model: str, progress: attacks.Progress) -> None:
        """See :class:`Observer`."""
        if "iterations" not in self._tasks:  # an attack in a round of the federation
            self._bar("iterations", f"  {attack}: iterations", progress.iterations)
        if progress.iteration < self._iteration:  # the next updates are under attack
            self._bars.reset(self._tasks["iterations"])
        self._iteration = progress.iteration
        cost = f"cost {progress.cost:.2e}"
        self._update(
            "iterations", completed=progress.iteration, total=progress.iterations, note=cost
        )
        if not self._live and time.monotonic() - self._last_line > LINE_SECONDS:
            self._say(f"  iteration {progress.iteration} of {progress.iterations}, {cost}")

    def victim_attacked(
        self,
        attack: str,
        model: str,
        update: InterceptedUpdate,
        truth: GroundTruth | None,
        reconstruction: Reconstruction,
        rows: Sequence[Mapping[str, Any]],
    ) -> None:
        """See :class:`Observer`."""
        scores = [row[self._column] for row in rows if row.get(self._column) is not None]
        self._scores += scores
        if not self._attack:  # in a round of the federation
            self._say(f"  {attack} on {model}: {update.key}{self._mean(scores)}")
        self._update("updates", advance=1, note=self._mean(self._scores).strip())

    def attack_skipped(self, attack: str, model: str, reason: str) -> None:
        """See :class:`Observer`."""
        if self._attack and self._attack != f"{attack} on {model}":
            self._clear()
        self._say(f"Attack {attack} on {model} skipped: {_short(reason)}")

    def run_ended(self, status: str) -> None:
        """See :class:`Observer`."""
        self._clear()
        if status != "complete":
            self._say(f"Run {status}; continue it with `--resume`.")

    def _say(self, text: str) -> None:
        self._last_line = time.monotonic()
        self._console.print(text, highlight=False, markup=False, soft_wrap=not self._live)

    def _bar(self, name: str, title: str, total: int, done: int = 0, note: str = "") -> None:
        self._tasks[name] = self._bars.add_task(title, total=total, completed=done, note=note)

    def _update(self, name: str, **changes: Any) -> None:
        if name in self._tasks:
            self._bars.update(self._tasks[name], **changes)

    def _clear(self) -> None:
        """Remove the bars of a finished federation or attack and print its mean score."""
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks = {}
        if self._attack and self._scores:
            self._say(f" {self._mean(self._scores)} of {_count(len(self._scores), 'sample')}")
        self._attack, self._scores, self._iteration = "", [], 0

    def _mean(self, scores: Sequence[float]) -> str:
        return f" mean {self._title} {sum(scores) / len(scores):.4f}" if scores else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _short(text: str, width: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
