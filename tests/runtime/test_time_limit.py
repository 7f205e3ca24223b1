"""Time limits on blocks of code."""

import signal
import threading
import time

import pytest

from fedleak.runtime.time_limit import time_limit


class Late(Exception):
    """The limit has passed."""


class Later(Exception):
    """The outer limit has passed."""


def busy(seconds: float) -> float:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return seconds


def test_a_block_that_takes_longer_is_ended() -> None:
    begun = time.monotonic()
    with pytest.raises(Late), time_limit(0.05, Late):
        busy(20)
    assert time.monotonic() - begun < 10
    with time_limit(20, Late):
        assert busy(0.01) == 0.01
    # Nothing is left of it.
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_it_ends_code_that_catches_the_exception_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedleak.runtime.time_limit.AGAIN_SECONDS", 0.05)
    caught = []

    def stubborn() -> None:
        try:
            busy(20)
        except Exception as error:
            caught.append(error)
        busy(20)

    with pytest.raises(Late), time_limit(0.05, Late):
        stubborn()
    assert len(caught) == 1


def test_an_outer_limit_goes_on_after_an_inner_one() -> None:
    def nested() -> None:
        with pytest.raises(Late), time_limit(0.02, Late):
            busy(20)
        busy(20)

    with pytest.raises(Later), time_limit(0.2, Later):
        nested()


def test_no_time_at_all() -> None:
    with pytest.raises(Late), time_limit(-1.0, Late):
        busy(20)


def test_another_thread_is_not_limited() -> None:
    found: list[float] = []

    def work() -> None:
        with time_limit(0.01, Late):
            found.append(busy(0.05))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0.05]
