"""A time limit on a block of code, for code that cannot be asked to stop."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Seconds after which the exception is raised again, in case the code has caught it.
AGAIN_SECONDS = 1.0
# A timer of 0 seconds would be none.
LEAST_SECONDS = 1e-3


@contextmanager
def time_limit(seconds: float, error: type[BaseException]) -> Iterator[None]:
    """Raise an exception in the block if it takes longer.

    The signal SIGALRM does it, so only code in the main thread is limited, and a single long call
    of a library ends when it returns. Blocks may be nested.

    Args:
        seconds: the limit; 0 or less ends the block at once.
        error: the exception that is raised, once and then every second until the block ends. One
            that is no ``Exception`` is not taken for an error of the code that is limited.

    Raises:
        BaseException: ``error``, if the block took longer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    active = True

    def ring(_number: int, _frame: FrameType | None) -> None:
        if active:
            raise error

    begun = time.monotonic()
    before = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(
        signal.ITIMER_REAL, max(LEAST_SECONDS, seconds), AGAIN_SECONDS
    )
    try:
        try:
            yield
        finally:
            active = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            rest = left - (time.monotonic() - begun)
            signal.setitimer(signal.ITIMER_REAL, max(LEAST_SECONDS, rest), interval)
