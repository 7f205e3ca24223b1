"""The live progress of a sweep, as plain lines and in a terminal."""

import io

import pytest
from rich.console import Console

from fedleak.config import RunConfig
from fedleak.registry import Plugin
from fedleak.reporting import SweepDisplay
from fedleak.reporting.sweep_display import duration
from fedleak.sweep import Cell, SweepProgress


def cells() -> list[Cell]:
    config = RunConfig(
        data=Plugin("fedleak.data.photos.Photos"), model=Plugin("fedleak.models.mlp.SMLP")
    )
    return [Cell(f"cell{n}", {"seed": str(n)}, config) for n in (0, 1)]


def shown(*, terminal: bool, status: str = "interrupted") -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100)
    first, second = cells()
    with SweepDisplay(console) as display:
        display.sweep_started([first, second], 0, 2, 1)
        display.progressed(
            SweepProgress(2, 0, 0, 1, {first.name: (1, 4), second.name: (0, 4)}, 90.0, 120.0)
        )
        display.cell_ended(first, "complete", None, 90)
        display.cell_ended(second, "failed", "no memory left", 600)
        display.progressed(SweepProgress(2, 1, 1, 4, {}, 690.0, None))
        display.sweep_ended({"status": status})
    return text.getvalue()


def test_without_a_terminal_there_are_plain_lines() -> None:
    assert shown(terminal=False).splitlines() == [
        "Sweep of 2 cells; 2 process(es), 1 thread(s) each",
        "  cell0: complete after 90 s, about 2 min left",
        "  cell1: failed after 10 min: no memory left, about 2 min left",
        "Sweep interrupted; continue it with `--resume`.",
    ]


def test_a_complete_sweep_needs_no_hint() -> None:
    assert "--resume" not in shown(terminal=False, status="complete")


def test_in_a_terminal_there_are_bars() -> None:
    text = shown(terminal=True)
    assert "cells" in text
    assert "updates" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (5940, "99 min"), (6000, "1.7 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
