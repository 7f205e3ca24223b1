"""Suppression of log messages of Flower, Ray and Lightning; fedleak shows its own progress."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

ENGINES = ("flwr", "ray", "pytorch_lightning")


class _Critical(logging.Filter):
    """Lets critical messages through alone."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.CRITICAL


class _Keeps(logging.Filter):
    """Keeps the first line of each error, and lets all messages through."""

    def __init__(self, kept: list[str]) -> None:
        super().__init__()
        self._kept = kept

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            line = record.getMessage().strip().partition("\n")[0]
            if line and line not in self._kept:
                self._kept.append(line)
        return True


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block, suppress warnings and all log messages but critical ones of the engines."""
    loggers = [logging.getLogger(name) for name in ENGINES]
    levels = [logger.level for logger in loggers]
    # Flower's errors reach its logger, for those that keep them, but no handler.
    flower, silent = loggers[0], _Critical()
    silenced: list[logging.Filterer] = [flower, *flower.handlers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR if logger is flower else logging.CRITICAL)
            for part in silenced:
                part.addFilter(silent)
            yield
        finally:
            for part in silenced:
                part.removeFilter(silent)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def flower_errors(kept: list[str]) -> Iterator[None]:
    """Within the block, keep the first lines of the errors that Flower logs, each once.

    They are kept where :func:`quiet` suppresses them too.

    Args:
        kept: to which the lines are added.
    """
    keeps, logger = _Keeps(kept), logging.getLogger("flwr")
    logger.filters.insert(0, keeps)
    try:
        yield
    finally:
        logger.removeFilter(keeps)
