"""Attacks and shadow clients on Ray give what they give here, also where a worker is killed."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedleak.audit.attack_workers import attack_workers
from fedleak.audit.label_shares import ShadowTraining
from fedleak.audit.ladder import Found, Victim, best_result, inputs
from fedleak.audit.shadow_clients import Shadow, train_shadows
from fedleak.errors import BadInput
from tests.audit.apps import ONE_STEP, imports_undone, observe


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with imports_undone():
        yield


def dies_once(victim: Victim, seconds: float, seed: int, limit: float) -> Found:
    """An attack whose worker dies the first time that it is started on client 0."""
    mark = Path(os.environ["FEDLEAK_TEST_MARKS"]) / victim.key
    if victim.update.client == 0 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return best_result(victim, seconds, seed, lambda text: None, limit=limit)


def test_what_workers_give_is_what_is_given_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, observed, victims = observe(tmp_path, "images", task=ONE_STEP)
    victims = victims[:2]
    (tmp_path / "marks").mkdir()
    monkeypatch.setenv("FEDLEAK_TEST_MARKS", str(tmp_path / "marks"))
    monkeypatch.setattr("fedleak.audit.attack_workers._attack", dies_once)
    here, expected = inputs(observed, victims, seconds=60)
    training = ShadowTraining(victims, None, seconds=60)
    facts, source = victims[0].known.knowledge, training.source
    arguments: Any = (
        facts.model, victims[0].update.sent, facts.loss, facts.local, source.inputs, source.labels,
    )  # fmt: skip
    settings = {"samples": 4, "classes": training.classes, "number": 6, "seed": 3}
    with attack_workers(2, None) as workers:
        assert workers is not None
        there, scores = inputs(observed, victims, seconds=60, attack_all=workers.attack)
        shadows = list(workers.train_shadows(*arguments, **settings))
        none_left = list(workers.attack(victims, time.monotonic(), 0.0, 0, lambda text: None))
    assert [score.key for score in scores] == [victim.key for victim in victims]
    assert [score.value for score in scores] == pytest.approx([s.value for s in expected], abs=1e-6)
    assert (there.status, there.attack) == (here.status, here.attack)
    assert len(list((tmp_path / "marks").iterdir())) == 1
    assert none_left == []
    _assert_same(shadows, list(train_shadows(*arguments, **settings)))


def _assert_same(some: list[Shadow], others: list[Shadow]) -> None:
    assert len(some) == len(others) == 6
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one.shares, other.shares)
        for name, value in one.change.items():
            torch.testing.assert_close(value, other.change[name])


def test_one_worker_is_this_process() -> None:
    with attack_workers(1, None) as workers:
        assert workers is None
    with pytest.raises(BadInput, match="at least 1, got 0"), attack_workers(0, None):
        pass
