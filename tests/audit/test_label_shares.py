"""Shares of labels by shadow clients, asked of small apps without Ray."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedleak.audit.label_shares import label_shares
from tests.audit.apps import imports_undone, observe


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with imports_undone():
        yield


@pytest.mark.parametrize("kind", ["table", "lightning"])
def test_labels_that_are_no_classes_are_not_asked_for(kind: str, tmp_path: Path) -> None:
    _, observed, victims = observe(tmp_path, kind)
    assert label_shares(observed, victims, None, seconds=1) is None
