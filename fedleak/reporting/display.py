"""The live progress of a run in a terminal, and in plain lines where there is none."""

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
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedleak import attacks
from fedleak.attacks.base import Reconstruction
from fedleak.events import Observer
from fedleak.updates import GroundTruth, InterceptedUpdate

# Without a terminal, so often at most is the progress of an attack printed.
LINE_SECONDS = 10.0


class Display(Observer):
    """Shows rounds and clients, then victims with iteration, cost and time left.

    Use it as a context manager, so that the terminal is left in order.

    Args:
        console: where to print.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
        )
        self._task: TaskID | None = None
        self._second: TaskID | None = None
        self._clients = 0
        self._last_line = 0.0
        self._scores: list[float] = []
        self._victims = 0

    def __enter__(self) -> "Display":
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def federation_started(self, model: str, clients: int, first: int, rounds: int) -> None:
        """See :class:`Observer`."""
        self._say(f"Federation of {clients} clients training {model}: {rounds} round(s)")
        self._clear()
        self._clients = clients
        self._task = self._bar(f"{model}: rounds", rounds, first - 1)
        self._second = self._bar("clients", clients)

    def client_answered(
        self, model: str, round_: int, client: int, metrics: Mapping[str, float] | None
    ) -> None:
        """See :class:`Observer`."""
        self._advance(self._second, note=f"client {client}")

    def client_failed(self, model: str, round_: int, client: int, reason: str) -> None:
        """See :class:`Observer`."""
        self._say(f"  round {round_}: client {client} failed: {_short(reason)}")
        self._advance(self._second)

    def round_evaluated(self, model: str, round_: int, metrics: Mapping[str, float]) -> None:
        """See :class:`Observer`."""
        figures = ", ".join(f"{name.split('/')[-1]} {v:.4f}" for name, v in metrics.items())
        self._say(f"  round {round_}: {figures or 'no test metrics'}")
        if self._task is not None:
            self._bars.update(self._task, completed=round_)
        if self._second is not None:
            self._bars.reset(self._second, total=self._clients, note="")

    def attack_started(self, attack: str, model: str, victims: int, done: int) -> None:
        """See :class:`Observer`."""
        before = f", {done} of them done before" if done else ""
        self._say(f"Attack {attack} on {model}: {victims} update(s){before}")
        self._clear()
        self._scores, self._victims, self._last_line = [], victims, time.monotonic()
        self._task = self._bar(f"{attack} on {model}: updates", victims, done)
        self._second = self._bar("iterations", 1)

    def attack_progressed(self, attack: str, model: str, progress: attacks.Progress) -> None:
        """See :class:`Observer`."""
        if self._second is not None:
            self._bars.update(
                self._second,
                completed=progress.iteration,
                total=progress.iterations,
                note=f"cost {progress.cost:.2e}",
            )
        if not self._live and time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(
                f"  iteration {progress.iteration} of {progress.iterations}, "
                f"cost {progress.cost:.2e}"
            )

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
        self._scores += [row["ssim"] for row in rows if "ssim" in row]
        mean = f"mean SSIM {sum(self._scores) / len(self._scores):.4f}" if self._scores else ""
        self._advance(self._task, note=mean)
        if self._task is None:
            self._say(f"  {attack} on {model}: {update.key} {mean}")
        elif self._scores and len(self._scores) >= self._victims:
            self._say(f"  {mean} of {len(self._scores)} sample(s)")

    def attack_skipped(self, attack: str, model: str, reason: str) -> None:
        """See :class:`Observer`."""
        self._say(f"Attack {attack} on {model} skipped: {_short(reason)}")

    def run_ended(self, status: str) -> None:
        """See :class:`Observer`."""
        self._clear()
        if status != "complete":
            self._say(f"Run {status}; go on with it by `--resume`.")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=not self._live)

    def _bar(self, title: str, total: int, done: int = 0) -> TaskID:
        return self._bars.add_task(title, total=total, completed=done, note="")

    def _advance(self, task: TaskID | None, note: str = "") -> None:
        if task is not None:
            self._bars.update(task, advance=1, note=note)

    def _clear(self) -> None:
        for task in (self._task, self._second):
            if task is not None:
                self._bars.remove_task(task)
        self._task = self._second = None


def _short(text: str, width: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
