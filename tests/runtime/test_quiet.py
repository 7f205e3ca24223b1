"""Suppression of log messages and warnings."""

import logging
import warnings

import pytest

from fedleak.runtime.quiet import quiet

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
    assert levels == [logging.CRITICAL] * 3
    assert [logger.level for logger in loggers] == before
