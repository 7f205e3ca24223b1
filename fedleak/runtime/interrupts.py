"""Signals that end a run: the first one interrupts it, but never in the midst of writing."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Seconds that the first signal gives to come to an orderly end; the next one after them ends all.
STOP_SECONDS = 10.0


class _Hold:
    """How many blocks deep the main thread is in what must not be interrupted."""

    depth = 0
    is_late = False
    """Whether a signal has come meanwhile."""
    signals = 0
    """How many have come in all."""


class Interrupt:
    """A signal handler: the first signal interrupts, later ones wait until it has had its time.

    Raises:
        KeyboardInterrupt: at the first signal; within :func:`held`, at its end.
    """

    def __init__(self) -> None:
        self._first: float | None = None

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """A signal has come."""
        _Hold.signals += 1
        if self._first is None:
            self._first = time.monotonic()
            if _Hold.depth:
                _Hold.is_late = True
                return
            raise KeyboardInterrupt
        if time.monotonic() - self._first > STOP_SECONDS:
            os._exit(130)


@contextmanager
def held() -> Iterator[None]:
    """Signals that come within the block interrupt at its end.

    Raised inside a lock, such as that of the queue of TensorBoard's writer, an interrupt would
    leave it locked, and whoever closes the writer would wait for ever. Signals reach the main
    thread alone, so that a block in another thread holds nothing.

    Raises:
        KeyboardInterrupt: at the end, if a signal came within.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Hold.depth += 1
    try:
        yield
    finally:
        _Hold.depth -= 1
        if _Hold.is_late and not _Hold.depth:
            _Hold.is_late = False
            raise KeyboardInterrupt


@contextmanager
def restored() -> Iterator[None]:
    """An error that ends the block is an interrupt again, if a signal came within.

    An interrupt that falls into a callback, as of torch's C++ while it records an iteration, may
    come out as another error.

    Raises:
        KeyboardInterrupt: in place of another error, if a signal came within.
    """
    before = _Hold.signals
    try:
        yield
    except Exception as error:
        if _Hold.signals > before:
            raise KeyboardInterrupt from error
        raise
