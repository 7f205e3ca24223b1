"""Signals: the first one interrupts, but not within a block that delays it."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from fedleak.runs.observer import Observer, Observers
from fedleak.runtime import interrupts
from fedleak.runtime.interrupts import Interrupt, delay_interrupts, reraise_as_interrupt


@pytest.fixture(autouse=True)
def handler() -> Iterator[Interrupt]:
    """The handler of SIGINT, as the command line sets it."""
    handler = Interrupt()
    before = signal.signal(signal.SIGINT, handler)
    yield handler
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_is_ignored_for_a_grace_period(
    monkeypatch: pytest.MonkeyPatch, handler: Interrupt
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGINT, None)
    handler(signal.SIGINT, None)
    assert codes == []
    monkeypatch.setattr(interrupts, "STOP_SECONDS", -1.0)
    handler(signal.SIGTERM, None)
    assert codes == [130]


def test_a_delayed_signal_interrupts_at_the_end() -> None:
    done: list[str] = []

    @delay_interrupts()
    def write() -> None:
        with delay_interrupts():
            signal.raise_signal(signal.SIGINT)
            done.append("inner")
        done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert done == ["inner", "outer"]
    with delay_interrupts():
        done.append("it is over")
    assert len(done) == 3


def test_a_block_without_a_signal_ends_as_it_does() -> None:
    with pytest.raises(ZeroDivisionError), delay_interrupts():
        _ = 1 / 0
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_block_in_another_thread_delays_nothing() -> None:
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with delay_interrupts():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(10)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    leave.set()
    thread.join()


def test_all_observers_are_notified_before_an_interrupt() -> None:
    class First(Observer):
        def data_loaded(self, description: str) -> None:
            signal.raise_signal(signal.SIGINT)
            told.append("first " + description)

    class Second(Observer):
        def data_loaded(self, description: str) -> None:
            told.append("second " + description)

    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        Observers([First(), Second()]).data_loaded("data")
    assert told == ["first data", "second data"]


def test_an_interrupt_converted_to_another_error_is_restored() -> None:
    @reraise_as_interrupt()
    def callback() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise TypeError("said by a callback") from None

    with pytest.raises(KeyboardInterrupt) as caught:
        callback()
    assert isinstance(caught.value.__cause__, TypeError)


def test_an_error_without_a_signal_is_not_replaced() -> None:
    with pytest.raises(ZeroDivisionError), reraise_as_interrupt():
        _ = 1 / 0
