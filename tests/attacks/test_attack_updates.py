"""An update that cannot be attacked costs no other; faults that are not the attack's are raised."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedleak.attacks.attack_updates import attack_updates
from fedleak.attacks.base import Attack, Problem, Reconstruction, Report
from fedleak.errors import require
from fedleak.updates.update import InterceptedUpdate
from tests.cases import LIGHT_MODELS, Victim, case_victim


class Picky(Attack):
    """Refuses client 1, is broken for client 2 and stops everything at client 3."""

    name = "picky"
    paper = "none"
    needs = "nothing"
    at_once = 8

    def run(self, problem: Problem, report: Report) -> Reconstruction:
        require(problem.name != "r0001-c0001", "Expected another client, got 1.")
        if problem.name == "r0001-c0002":
            raise KeyError("weights")
        if problem.name == "r0001-c0003":
            raise Stop
        labels = torch.zeros(problem.knowledge.num_samples, dtype=torch.long)
        return Reconstruction(torch.zeros(problem.batch_shape), labels)


class Stop(Exception):
    """Ends a run."""


@pytest.fixture
def victim() -> Victim:
    return case_victim(LIGHT_MODELS[0], precode=False)


def of_clients(victim: Victim, *clients: int) -> list[InterceptedUpdate]:
    return [replace(victim.update, round=1, client=client) for client in clients]


def attacked(victim: Victim, *clients: int, **settings: Any) -> tuple[list[str], list[Any]]:
    done: list[str] = []
    refused = attack_updates(
        Picky(),
        of_clients(victim, *clients),
        lambda update: victim.knowledge,
        finished=lambda update, found: done.append(update.key),
        **settings,
    )
    return done, [(refusal.update.key, refusal.reason, refusal.broken) for refusal in refused]


def test_each_is_attacked_once(victim: Victim) -> None:
    assert attacked(victim, 0, 4, 5) == (["r0001-c0000", "r0001-c0004", "r0001-c0005"], [])
    assert attacked(victim) == ([], [])


def test_what_fails_costs_no_other(victim: Victim, caplog: pytest.LogCaptureFixture) -> None:
    done, refused = attacked(victim, 0, 1, 2, 4)
    assert done == ["r0001-c0000", "r0001-c0004"]
    assert refused == [
        ("r0001-c0001", "Expected another client, got 1.", False),
        ("r0001-c0002", "picky failed: KeyError: 'weights'", True),
    ]
    assert "picky failed" in caplog.text


def test_knowledge_that_cannot_be_had_is_a_reason(victim: Victim) -> None:
    def knowledge(update: InterceptedUpdate) -> Any:
        require(update.client != 4, "Expected the labels of client 4.")
        return victim.knowledge

    done: list[str] = []
    refused = attack_updates(
        Picky(), of_clients(victim, 0, 4), knowledge,
        finished=lambda update, found: done.append(update.key),
    )  # fmt: skip
    assert done == ["r0001-c0000"]
    assert [refusal.reason for refusal in refused] == ["Expected the labels of client 4."]


def test_what_ends_a_run_ends_it(victim: Victim) -> None:
    with pytest.raises(Stop):
        attacked(victim, 0, 3, ends=(Stop,))
    assert attacked(victim, 3)[1] == [("r0001-c0003", "picky failed: Stop: ", True)]


def test_a_fault_of_whoever_listens_is_passed_on(victim: Victim) -> None:
    def finished(update: InterceptedUpdate, found: Reconstruction) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        attack_updates(
            Picky(), of_clients(victim, 0, 4), lambda _: victim.knowledge, finished=finished
        )
