"""What a page of the documentation registers is gone after its test."""

from collections.abc import Iterator
from unittest import mock

import pytest

from fedleak.attacks.closed_form.layer_rules import LAYER_RULES


@pytest.fixture(autouse=True)
def _own_layer_rules() -> Iterator[None]:
    with mock.patch.dict(LAYER_RULES):
        yield
