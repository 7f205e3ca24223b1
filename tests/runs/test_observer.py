"""Observers of a run."""

import os
import signal
from typing import Any

import pytest

from fedleak.runs.observer import Observer, Observers
from fedleak.runtime.interrupts import Interrupt

EVENTS = [name for name in vars(Observer) if not name.startswith("_")]


class Listener(Observer):
    def __init__(self, name: str, heard: list[tuple[str, str, tuple[Any, ...]]]) -> None:
        for event in EVENTS:
            setattr(self, event, lambda *a, event=event: heard.append((name, event, a)))


def test_every_event_reaches_every_observer_in_order() -> None:
    heard: list[tuple[str, str, tuple[Any, ...]]] = []
    observers = Observers([Listener("first", heard), Listener("second", heard)])
    for event in EVENTS:
        getattr(observers, event)("argument")
    assert heard == [
        (name, event, ("argument",)) for event in EVENTS for name in ("first", "second")
    ]


def test_an_observer_overrides_what_it_needs() -> None:
    class Ends(Observer):
        status = ""

        def run_ended(self, status: str) -> None:
            self.status = status

    ends = Ends()
    observers = Observers([ends])
    observers.data_loaded("8 images")
    observers.run_ended("complete")
    assert ends.status == "complete"


def test_an_interrupt_comes_after_the_last_observer(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    class Interrupting(Observer):
        def run_ended(self, status: str) -> None:
            heard.append("first")
            os.kill(os.getpid(), signal.SIGINT)

    class Last(Observer):
        def run_ended(self, status: str) -> None:
            heard.append("last")

    before = signal.signal(signal.SIGINT, Interrupt())
    try:
        with pytest.raises(KeyboardInterrupt):
            Observers([Interrupting(), Last()]).run_ended("complete")
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == ["first", "last"]
