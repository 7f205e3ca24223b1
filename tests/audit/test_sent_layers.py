"""Which parts of the model clients send, of small apps without Ray."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedleak.audit.ladder import Victim
from fedleak.audit.sent_layers import layers_not_sent
from tests.audit.apps import ONE_STEP, imports_undone, observe


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with imports_undone():
        yield


def without(victim: Victim, *names: str) -> Victim:
    received = {n: v for n, v in victim.update.received.items() if n not in names}
    return replace(victim, update=replace(victim.update, received=received))


def test_parameters_that_are_missing_are_named(tmp_path: Path) -> None:
    _, _, victims = observe(tmp_path, "images", task=ONE_STEP)
    names = [name for name, _ in victims[0].known.knowledge.model.named_parameters()]
    assert len(names) == 4
    assert layers_not_sent(victims) == []
    mixed = [without(victims[0], *names[:3]), without(victims[1], names[0]), *victims[2:]]
    first, second = layers_not_sent(mixed)
    assert first == (
        f"1 of 4 updates have 1 of the model's 4 parameters and lack `{names[0]}`, `{names[1]}`, "
        f"`{names[2]}`: what those would tell is not known"
    )
    assert second.startswith("1 of 4 updates have 3 of the model's 4 parameters and lack")
    # By other names than the model's it is not known what is missing.
    assert layers_not_sent([without(victims[0], *names)]) == []
