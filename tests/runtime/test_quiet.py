"""Suppression of log messages and warnings."""

import logging
import warnings

import pytest

from fedleak.runtime.quiet import flower_errors, quiet

ENGINES = ("flwr", "ray", "pytorch_lightning")


@pytest.mark.parametrize("name", ENGINES)
def test_only_critical_messages_pass(name: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(name)
    logger.addHandler(caplog.handler)  # Flower's logger does not propagate
    try:
        with quiet():
            logger.error("within")
            logger.critical("critical")
        logger.error("after")
    finally:
        logger.removeHandler(caplog.handler)
    assert list(dict.fromkeys(caplog.messages)) == ["critical", "after"]


def test_warnings_are_ignored_within_the_block() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn("within", stacklevel=1)
        warnings.warn("after", stacklevel=1)
    assert [str(item.message) for item in caught] == ["after"]


def test_levels_are_restored_after_an_error() -> None:
    loggers = [logging.getLogger(name) for name in ENGINES]
    before = [logger.level for logger in loggers]
    levels: list[int] = []

    def fail() -> None:
        levels.extend(logger.level for logger in loggers)
        raise ValueError("within the block")

    with pytest.raises(ValueError, match="within the block"), quiet():
        fail()
    # Flower's errors are dropped later, after those that keep them.
    assert levels == [logging.ERROR, logging.CRITICAL, logging.CRITICAL]
    assert [logger.level for logger in loggers] == before


def test_errors_of_flower_are_kept_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    logger, kept = logging.getLogger("flwr"), list[str]()
    filters = list(logger.filters)
    logger.addHandler(caplog.handler)
    try:
        with quiet(), flower_errors(kept):
            logger.warning("a warning")
            for _ in range(2):
                logger.error("Not enough %s\nto recover", "shares")
            logging.getLogger("flwr.child").error("of another part")
        logger.error("after")
    finally:
        logger.removeHandler(caplog.handler)
    assert kept == ["Not enough shares"]
    assert list(dict.fromkeys(caplog.messages)) == ["after"]
    assert logger.filters == filters
