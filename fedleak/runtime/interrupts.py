"""Signals that end a run: the first one interrupts it, but not while a file is being written."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Seconds that a run has to shut down after the first signal; a later signal ends the process.
STOP_SECONDS = 10.0


class _SignalState:
    """The main thread's state, which the handler and the context managers share."""

    depth = 0
    """Number of nested :func:`delay_interrupts` blocks."""
    is_pending = False
    """Whether a signal was received within such a block."""
    signals = 0
    """Number of signals received so far."""


class Interrupt:
    """A signal handler: the first signal interrupts, later ones are ignored for a grace period.

    A signal that comes more than ``STOP_SECONDS`` after the first one ends the process with exit
    code 130.

    Raises:
        KeyboardInterrupt: at the first signal; within :func:`delay_interrupts`, at the block's end.
    """

    def __init__(self) -> None:
        self._first: float | None = None

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        _SignalState.signals += 1
        if self._first is None:
            self._first = time.monotonic()
            if _SignalState.depth:
                _SignalState.is_pending = True
                return
            raise KeyboardInterrupt
        if time.monotonic() - self._first > STOP_SECONDS:
            os._exit(130)


@contextmanager
def delay_interrupts() -> Iterator[None]:
    """Delay an interrupt that comes within the block until the block's end.

    Raised inside a lock, such as that of the queue of TensorBoard's writer, an interrupt would
    leave the lock taken, and closing the writer would block for ever. Signals are delivered to the
    main thread only, so a block in another thread delays nothing.

    Raises:
        KeyboardInterrupt: at the end, if a signal was received within the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _SignalState.depth += 1
    try:
        yield
    finally:
        _SignalState.depth -= 1
        if _SignalState.is_pending and not _SignalState.depth:
            _SignalState.is_pending = False
            raise KeyboardInterrupt


@contextmanager
def reraise_as_interrupt() -> Iterator[None]:
    """Replace an error in the block by an interrupt if a signal was received within the block.

    An interrupt raised in a callback from C++, as when torch traces an iteration, may be converted
    to another exception on its way.

    Raises:
        KeyboardInterrupt: in place of another error, if a signal was received within the block.
    """
    before = _SignalState.signals
    try:
        yield
    except Exception as error:
        if _SignalState.signals > before:
            raise KeyboardInterrupt from error
        raise


def signals_received() -> int:
    """Number of signals that :class:`Interrupt` has received so far in this process."""
    return _SignalState.signals
