"""The sum of a round's updates, and what is asked of it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedleak.audit.ladder import Victim, inputs, touched_rows, truth_of
from fedleak.audit.sums import sum_of_round, sums_of_rounds
from fedleak.errors import BadInput
from tests.audit.apps import IMAGES, ONE_STEP, TEXT, imports_undone, observe


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with imports_undone():
        yield


def test_the_sum_is_the_mean_weighted_by_samples(tmp_path: Path) -> None:
    # Clients of 6 and 7 samples: 2 steps of at most 4 samples each.
    task = IMAGES.replace("6, 3, 16, 16", "6 + number % 2, 3, 16, 16")
    task = task.replace("randint(10, (6,))", "randint(10, (6 + number % 2,))")
    _, observed, victims = observe(tmp_path, "images", task=task)
    whole = sum_of_round(victims)
    facts = whole.known.knowledge
    assert facts.clients == (6, 7, 6, 7)
    assert facts.num_samples == whole.update.num_examples == 26
    assert [part.steps for part in facts.by_client] == [2] * 4
    assert (facts.local.momentum, facts.batch_size, facts.labels) == (0.9, 4, None)
    name = "fc1.weight"
    expected = sum(
        number / 26 * (v.update.received[name].double() - v.update.sent[name].double())
        for number, v in zip((6, 7, 6, 7), victims, strict=True)
    )
    torch.testing.assert_close(whole.update.received[name], expected)
    truth = truth_of(observed, whole)
    assert torch.equal(truth.inputs, torch.cat([truth_of(observed, v).inputs for v in victims]))
    assert whole.setting.startswith("sum over 4 clients of 26 samples, 2 steps of sgd")


def test_clients_of_unequal_numbers_of_steps_take_as_many_epochs(tmp_path: Path) -> None:
    task = IMAGES.replace("6, 3, 16, 16", "6 + 3 * (number % 2), 3, 16, 16")
    task = task.replace("randint(10, (6,))", "randint(10, (6 + 3 * (number % 2),))")
    _, _, victims = observe(tmp_path, "images", task=task)
    facts = sum_of_round(victims).known.knowledge
    assert [part.steps for part in facts.by_client] == [2, 3, 2, 3]
    assert facts.local.epochs == 1


def test_what_cannot_be_added_up(tmp_path: Path) -> None:
    _, _, victims = observe(tmp_path, "images", task=ONE_STEP)
    with pytest.raises(BadInput, match="at least 2 updates"):
        sum_of_round(victims[:1])
    assert sums_of_rounds(victims[:1]) == ([], [])

    def trained(victim: Victim, **facts: object) -> Victim:
        own = victim.known.knowledge.with_training(**facts)
        return replace(victim, known=replace(victim.known, knowledge=own))

    found, reasons = sums_of_rounds([victims[0], trained(victims[1], learning_rate=0.3)])
    assert not found
    assert "the sum of the updates of round 1" in reasons[0]
    assert "optimisers or batches differ" in reasons[0]
    three = trained(victims[1], steps=3)
    five = trained(victims[2], steps=5)
    two = replace(five, known=replace(five.known, knowledge=replace(
        five.known.knowledge, num_samples=2, batch_size=None, local_steps=None,
        learning_rate=None)))  # fmt: skip
    with pytest.raises(BadInput, match="differ"):
        sum_of_round([three, two])
    later = replace(victims[1], update=replace(victims[1].update, round=2))
    with pytest.raises(BadInput, match=r"one round, got those of rounds \[1, 2\]"):
        sum_of_round([victims[0], later])


def test_the_union_of_the_clients_tokens_is_read_from_their_sum(tmp_path: Path) -> None:
    # Of 30 tokens, four clients have all.
    task = TEXT.replace("Embedding(30", "Embedding(300").replace("randint(30", "randint(300")
    _, observed, victims = observe(tmp_path, "text", task=task)
    sums, reasons = sums_of_rounds(victims)
    assert not reasons
    answer = touched_rows(observed, sums)
    assert answer is not None
    assert answer.rung == 0
    # Where two clients move a row by as much in opposite directions, it stands still.
    assert answer.answer.mean > 0.97
    assert answer.guess.mean < 0.7
    assert answer.answer.n == 1
    assert answer.sentence.startswith("set of tokens from the sum over clients alone was not")


def test_inputs_are_searched_in_the_sum(tmp_path: Path) -> None:
    _, observed, victims = observe(tmp_path, "images", task=ONE_STEP)
    whole = sum_of_round(victims)
    answer, scores = inputs(observed, [whole], seconds=20)
    assert answer.rung == 0
    assert scores[0].explained > 0.9
    # Relative error; the mean of the four clients' images has 0.5.
    assert answer.answer.mean < 0.75 * answer.guess.mean
    assert "mean of all clients' samples" in answer.note
