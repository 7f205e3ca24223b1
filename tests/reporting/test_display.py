"""The live progress of a run."""

import io
import re

import pytest
from rich.console import Console

from fedleak.attacks import Progress
from fedleak.reporting import (
    Display,
)
from tests.federation.runs import (
    Finished,
)


def replayed(finished: Finished, *, terminal: bool, width: int = 80) -> str:
    """What a display prints of the finished run, and of some trouble after it."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, color_system=None)
    with Display(console) as display:
        for name, arguments in finished.events.events:
            getattr(display, name)(*arguments)
        display.federation_started("lenet", 1, 3, 5)
        display.client_failed("lenet", 3, 0, "a [bold]long[/] story\n" * 50)
        display.attack_progressed("iga", "lenet", Progress(50, 100, 0.25))
        display.victim_attacked(*finished.events.arguments("victim_attacked")[0])
        display.round_evaluated("lenet", 3, {})
        display.run_ended("interrupted")
    return file.getvalue()


def test_without_a_terminal_there_are_plain_lines(finished: Finished) -> None:
    text = replayed(finished, terminal=False)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert re.fullmatch(r"Data .+: \d+ samples for training, \d+ for the test", lines[0])
    assert lines[1] == "Federation of 4 clients training smlp: 2 rounds"
    assert lines[2].startswith("  round 0: loss ")
    assert ", accuracy " in lines[2]
    assert lines.index("Attack iga on smlp: 8 updates") < lines.index(
        "Attack nra on smlp skipped: nra needs a model that draws noise and SMLP draws none"
    )
    means = [line for line in lines if line.startswith("  mean SSIM ")]
    assert means == [
        f"  mean SSIM {entry['ssim']:.4f} of 16 samples" for entry in finished.summary["attacks"]
    ]
    assert lines[lines.index("Attack iga on smlp: 8 updates") + 1] == means[0]
    assert "Federation of 1 client training lenet: rounds 3 to 5" in lines
    (failure,) = [line for line in lines if "failed" in line]
    assert failure.startswith("  round 3: client 0 failed: a [bold]long[/] story a [bold]long[/]")
    assert len(failure) < 240
    assert "  round 3: done" in lines
    assert any(line.startswith("  iga on smlp: r0001-c0000 mean SSIM ") for line in lines)
    assert lines[-1] == "Run interrupted; continue it with `--resume`."


def test_in_a_terminal_there_are_bars(finished: Finished) -> None:
    text = replayed(finished, terminal=True)
    for words in ("Federation of 4 clients", "mean SSIM", "Run interrupted"):
        assert words in text
    assert "━" in text


def test_long_attacks_report_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedleak.reporting.display.LINE_SECONDS", -1.0)
    file = io.StringIO()
    with Display(Console(file=file, width=80)) as display:
        display.attack_started("iga", "smlp", 20, 16)
        display.attack_progressed("iga", "smlp", Progress(100, 200, 0.25))
    assert file.getvalue().splitlines() == [
        "Attack iga on smlp: 20 updates, 16 of them already done",
        "  iteration 100 of 200, cost 2.50e-01",
    ]


def test_bars_start_again_with_the_next_updates(finished: Finished) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Display(console) as display:
        display.attack_started("iga", "smlp", 20, 0)
        for iteration in (0, 50, 100, 0, 50):
            display.attack_progressed("iga", "smlp", Progress(iteration, 100, 0.25))
        task = next(t for t in display._bars.tasks if "iterations" in t.description)
        assert (task.completed, task.total, task.finished) == (50, 100, False)
