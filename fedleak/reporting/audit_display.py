"""Live progress of an audit: bars in a terminal, plain lines elsewhere."""

import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

from fedleak.audit.progress import AuditObserver
from fedleak.audit.verdict import Answer
from fedleak.reporting.display import LINE_SECONDS
from fedleak.reporting.sweep_display import duration


class _TimeBar(BarColumn):
    """A bar of the steps done or, where a task has the time of its begin, of the time used."""

    def render(self, task: Task) -> ProgressBar:
        """See rich.progress.BarColumn."""
        bar = super().render(task)
        begun = task.fields.get("begun")
        if begun is not None:
            bar.completed = min(task.total or 0.0, time.monotonic() - begun)
        return bar


class _TimeLeft(ProgressColumn):
    """The time that is left until the end that a task has, if it has one."""

    def render(self, task: Task) -> Text:
        """See rich.progress.ProgressColumn."""
        end = task.fields.get("end")
        return Text("" if end is None else f"{duration(max(0.0, end - time.monotonic()))} left")


class AuditDisplay(AuditObserver):
    """Shows the app's rounds, then the stages of the audit with the budget that is left.

    Use it as a context manager, which restores the terminal.

    Args:
        console: where to print.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}"), _TimeBar(bar_width=None),
            TextColumn("{task.fields[note]}"), _TimeLeft(),
            console=console, transient=True, expand=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._begun = self._last_line = time.monotonic()
        self._rounds: int | None = None
        self._round, self._updates = 0, 0
        self._stage, self._stages = 0, 0
        self._end = 0.0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def said(self, sentence: str) -> None:
        """See :class:`AuditObserver`."""
        self._say(sentence)

    def app_started(self, clients: int, rounds: int | None) -> None:
        """See :class:`AuditObserver`."""
        self._begun, self._rounds, self._updates = time.monotonic(), rounds, 0
        these = "" if rounds is None else f", {_count(rounds, 'round')}"
        self._say(f"The app trains with {_count(clients, 'client')}{these}")
        self._bar("app", "the app's training", rounds, note="starting")

    def update_kept(self, key: str) -> None:
        """See :class:`AuditObserver`."""
        self._updates += 1
        round_ = int(key.partition("-")[0].removeprefix("r"))
        where = f"round {round_}" + ("" if self._rounds is None else f" of {self._rounds}")
        text = f"{where}, {_count(self._updates, 'update')}"
        if round_ != self._round:
            self._round = round_
            end = None
            if self._rounds is not None and round_ > 1:
                # The rounds before this one tell how long the others take.
                spent = time.monotonic() - self._begun
                end = self._begun + spent / (round_ - 1) * self._rounds
            self._update("app", completed=round_ - 1, end=end)
        self._update("app", note=text)
        self._say_sometimes(text)

    def app_ended(self, updates: int, seconds: float) -> None:
        """See :class:`AuditObserver`."""
        self._clear()
        self._say(f"  {_count(updates, 'update')} in {duration(seconds)}")

    def attacks_started(self, stages: int, budget: float, used: float) -> None:
        """See :class:`AuditObserver`."""
        self._stages, self._end = stages, time.monotonic() + budget - used
        before = f", of which {duration(used)} are used" if used else ""
        self._say(f"Attacks within {duration(budget)}{before}")
        begun = time.monotonic() - used
        self._bar("budget", "budget", budget, begun=begun, end=self._end)

    def stage_started(self, name: str, seconds: float) -> None:
        """See :class:`AuditObserver`."""
        self._stage += 1
        title = f"{self._stage} of {self._stages}: {name}"
        self._say(f"  {title}{f', at most about {duration(seconds)}' if seconds else ''}")
        self._clear("stage", "victims")
        now = time.monotonic()
        begun, end = (now, now + seconds) if seconds else (None, None)
        self._bar("stage", title, seconds or None, begun=begun, end=end)

    def canary_tried(self, reconstructed: bool) -> None:
        """See :class:`AuditObserver`."""
        self._say(f"    {'' if reconstructed else 'not '}reconstructed")

    def progressed(self, text: str) -> None:
        """See :class:`AuditObserver`."""
        self._update("stage", note=text)
        left = max(0.0, self._end - time.monotonic())
        self._say_sometimes(f"  {text}; {duration(left)} of the budget left")

    def victim_attacked(self, done: int, victims: int) -> None:
        """See :class:`AuditObserver`."""
        if "victims" not in self._tasks:
            self._bar("victims", "  updates attacked", victims)
        self._update("victims", completed=done, note=f"{done} of {victims}")

    def answered(self, answer: Answer) -> None:
        """See :class:`AuditObserver`."""
        self._say(f"    {answer.status}")

    def audit_ended(self, status: str) -> None:
        """See :class:`AuditObserver`."""
        self._clear()
        if status != "complete":
            self._say(f"Audit {status}; continue it with `--resume`.")

    def _say(self, text: str) -> None:
        self._last_line = time.monotonic()
        self._console.print(text, highlight=False, markup=False, soft_wrap=not self._live)

    def _say_sometimes(self, text: str) -> None:
        """Without a terminal, a line if the last one was long ago."""
        if not self._live and time.monotonic() - self._last_line > LINE_SECONDS:
            self._say(f"  {text}")

    def _bar(
        self,
        name: str,
        title: str,
        total: float | None,
        *,
        note: str = "",
        begun: float | None = None,
        end: float | None = None,
    ) -> None:
        fields: dict[str, Any] = {"note": note, "begun": begun, "end": end}
        self._tasks[name] = self._bars.add_task(title, total=total, **fields)

    def _update(self, name: str, **changes: Any) -> None:
        if name in self._tasks:
            self._bars.update(self._tasks[name], **changes)

    def _clear(self, *names: str) -> None:
        """Remove some bars, or all."""
        for name in names or tuple(self._tasks):
            if name in self._tasks:
                self._bars.remove_task(self._tasks.pop(name))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
