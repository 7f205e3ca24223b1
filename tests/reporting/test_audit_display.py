"""The live progress of an audit."""

import io
import time
from typing import Any

import pytest
from rich.console import Console

from fedleak.reporting import AuditDisplay
from tests.audit.made_audit import INPUTS, an_answer


def shown(*, terminal: bool) -> tuple[str, list[Any]]:
    """What a display prints of an audit, and the bars that it had when inputs were attacked."""
    file, bars = io.StringIO(), []
    console = Console(file=file, force_terminal=terminal, width=100, color_system=None)
    with AuditDisplay(console) as display:
        display.app_started(4, 2)
        for key in ("r0001-c0000", "r0001-c0001", "r0002-c0000"):
            display.update_kept(key)
        display.app_ended(3, 12.0)
        display.attacks_started(3, 600.0, 60.0)
        display.stage_started("number of samples", 0.0)
        display.canary_tried(False)
        display.stage_started("shares of labels", 180.0)
        display.progressed("shadow client 3 of at most 160")
        display.answered(an_answer(*INPUTS, [0.9, 0.9], [0.1, 0.1]))
        display.stage_started("inputs", 300.0)
        display.victim_attacked(1, 4)
        display.progressed("iga on r0001-c0001")
        bars = [
            (task.description, task.total, task.completed, task.fields)
            for task in display._bars.tasks
        ]
        display.audit_ended("interrupted")
    return file.getvalue(), bars


def test_without_a_terminal_there_are_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedleak.reporting.audit_display.LINE_SECONDS", -1.0)
    text, _ = shown(terminal=False)
    assert "\x1b" not in text
    assert text.splitlines() == [
        "The app trains with 4 clients, 2 rounds",
        "  round 1 of 2, 1 update",
        "  round 1 of 2, 2 updates",
        "  round 2 of 2, 3 updates",
        "  3 updates in 12 s",
        "Attacks within 10 min, of which 60 s are used",
        "  1 of 3: number of samples",
        "    not reconstructed",
        "  2 of 3: shares of labels, at most about 3 min",
        "    shadow client 3 of at most 160; 9 min of the budget left",
        "    leaks",
        "  3 of 3: inputs, at most about 5 min",
        "    iga on r0001-c0001; 9 min of the budget left",
        "Audit interrupted; continue it with `--resume`.",
    ]


def test_lines_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    text, _ = shown(terminal=False)
    assert "shadow client" not in text
    assert "2 of 3: shares of labels" in text


def test_in_a_terminal_there_are_bars_with_the_time_left() -> None:
    text, bars = shown(terminal=True)
    assert "━" in text
    assert "Audit interrupted" in text
    (budget, stage, victims) = bars
    assert budget[:2] == ("budget", 600.0)
    assert budget[3]["end"] - time.monotonic() == pytest.approx(540, abs=5)
    assert time.monotonic() - budget[3]["begun"] == pytest.approx(60, abs=5)
    assert stage[:2] == ("3 of 3: inputs", 300.0)
    assert stage[3]["note"] == "iga on r0001-c0001"
    assert victims[1:3] == (4, 1)


def test_the_training_tells_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("fedleak.reporting.audit_display.time.monotonic", lambda: now[0])
    file = io.StringIO()
    display = AuditDisplay(Console(file=file, force_terminal=True, width=80))
    display.app_started(1, 3)
    display.update_kept("r0001-c0000")
    assert display._bars.tasks[0].fields["end"] is None
    now[0] = 120.0
    display.update_kept("r0002-c0000")
    # A round took 20 s, so three take 60 s from the begin on.
    assert display._bars.tasks[0].fields["end"] == 160.0
    assert "40 s left" in str(display._bars.columns[3].render(display._bars.tasks[0]))  # type: ignore[union-attr]


def test_an_app_that_does_not_tell_its_rounds() -> None:
    file = io.StringIO()
    with AuditDisplay(Console(file=file, width=80)) as display:
        display.app_started(1, None)
        display.update_kept("r0001-c0000")
        display.said("The app does not train again.")
        display.audit_ended("complete")
    assert file.getvalue().splitlines() == [
        "The app trains with 1 client", "The app does not train again."
    ]  # fmt: skip
