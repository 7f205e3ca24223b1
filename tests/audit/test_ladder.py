"""The rungs of the ladder on small apps, without Ray."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedleak.audit.ladder import inputs, touched_rows
from tests.audit.apps import imports_undone, observe


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with imports_undone():
        yield


def test_a_texts_set_of_tokens_is_read_exactly(tmp_path: Path) -> None:
    _, observed, victims = observe(tmp_path, "text")
    answer = touched_rows(observed, victims)
    assert answer is not None
    assert answer.answer.mean == 1.0
    assert answer.guess.mean < 1.0
    assert answer.status == "leaks"


def test_what_takes_too_long_is_said_and_not_tried(tmp_path: Path) -> None:
    _, observed, victims = observe(tmp_path, "images")
    answer, scores = inputs(observed, victims, seconds=1e-3)
    assert answer.status == "not tried"
    assert not scores
    assert "no time was left" in answer.sentence or "more than the budget" in answer.sentence
