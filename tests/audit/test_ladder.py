"""The rungs of the ladder on small apps, without Ray."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedleak.attacks import Tokens
from fedleak.audit.label_shares import ShadowTraining, label_shares
from fedleak.audit.ladder import (
    MOST_EVALUATIONS,
    MOST_TOKEN_ITERATIONS,
    TRIED_EVALUATIONS,
    Found,
    Queue,
    best_result,
    find_victims,
    inputs,
    matching,
    told_numbers,
    touched_rows,
)
from fedleak.audit.samples import Attacked
from fedleak.audit.simulation import REPLIES, run_app
from tests.audit.apps import BUDGET, ONE_STEP, imports_undone, in_process, observe, write_kind


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


def test_shadow_clients_that_would_take_too_long_are_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, observed, victims = observe(tmp_path, "images")
    trained = []

    def slowly(*args: object, **kwargs: object) -> Iterator[int]:
        for number in range(160):
            time.sleep(0.05)
            trained.append(number)
            yield number

    monkeypatch.setattr("fedleak.audit.label_shares.train_shadows", slowly)
    answer = label_shares(observed, ShadowTraining(victims, None, seconds=0.5))
    assert answer is not None
    assert answer.status == "not tried"
    assert re.search(r"40 shadow clients need about \d+ s, more than the 0 s", answer.sentence)
    assert len(trained) == 3


def test_updates_that_were_attacked_before_are_left_out(tmp_path: Path) -> None:
    _, observed, victims = observe(tmp_path, "images", task=ONE_STEP)
    seen: list[Attacked] = []
    first, scores = inputs(observed, victims[:2], seconds=BUDGET, finished=seen.append)
    assert [one.score for one in seen] == scores
    assert all(one.found.shape == one.truth.inputs.shape == one.guess.shape for one in seen)
    known = {score.key: score for score in scores}
    seen.clear()
    answer, both = inputs(observed, victims, seconds=BUDGET, done=known, finished=seen.append)
    assert [one.score.key for one in seen] == [victim.key for victim in victims[2:]]
    assert [score.key for score in both] == [victim.key for victim in victims]
    assert answer.answer.n == 4
    assert first.answer.n == 2


def test_an_attack_without_progress_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, victims = observe(tmp_path, "images", task=ONE_STEP)

    def hangs(self: object, *args: object, **kwargs: object) -> None:
        while True:
            pass

    monkeypatch.setattr("fedleak.attacks.analytic.Analytic.run", hangs)
    begun = time.monotonic()
    found = best_result(victims[0], 0.3, 0, lambda text: None)
    assert time.monotonic() - begun < 5
    assert found.best is None
    assert "more than its share of the time" in found.reason


def test_what_needs_more_than_its_share_has_it_while_there_is_time(tmp_path: Path) -> None:
    _, _, victims = observe(tmp_path, "images", task=ONE_STEP)
    queue, left, attacked = Queue(victims), 100.0, []
    while queue and left > 0:
        victim, share = queue.next(left)
        short = share < 40
        left -= 5 if short else 45
        if not queue.again(victim, Found(None, needed=40 if short else 0.0), left):
            attacked.append((victim.key, share))
    keys = [victim.key for victim in victims]
    # A quarter of the time is too short for the first one, which waits. 40 s and a fifth are enough
    # for the next two; of the last 5 s nothing is left for the first.
    assert attacked == [(keys[1], 48.0), (keys[2], 48.0), (keys[3], 2.5)]
    assert len(queue) == 1
    # What was found is not given up for a longer search.
    assert not queue.again(victims[3], Found(object(), needed=1.0), 100.0)


def test_the_search_for_tokens_fits_into_its_time(tmp_path: Path) -> None:
    _, _, victims = observe(tmp_path, "text")
    chosen, reason, needed = matching(victims[0], 1e-3, 0)
    assert chosen is None
    assert "more than its share of the time" in reason
    chosen, reason, needed = matching(victims[0], 60, 0)
    assert (reason, needed) == ("", 0.0)
    assert isinstance(chosen, Tokens)
    assert 1 <= chosen.iterations <= MOST_TOKEN_ITERATIONS
    assert TRIED_EVALUATIONS <= chosen.evaluations <= MOST_EVALUATIONS


def test_a_number_of_samples_is_read_from_any_metric(tmp_path: Path) -> None:
    one, several = "torch.rand(1, 3, 6, 6), torch.randint(4, (1,))", "torch.rand(2 + number % 3, 3,"
    task = ONE_STEP.replace(one, f"{several} 6, 6), torch.randint(4, (2 + number % 3,))")
    _, observed, victims = observe(tmp_path, "images", task=task)
    assert [victim.known.knowledge.num_samples for victim in victims] == [2, 3, 4, 2]
    plain = told_numbers(observed, victims)
    assert (plain.answer.mean, plain.threat_model) == (1.0, "A")
    path = observed.folder / REPLIES
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for other, mean in ((0, 1.0), (1, 0.0)):
        # Of another app: no key that is known tells it; a metric does, or one that is near it.
        changed = [
            row | {"examples": None, "metrics": {"loss": 2.0, "seen": row["examples"] + other}}
            for row in rows
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in changed))
        found = told_numbers(observed, victims)
        assert found.answer.mean == mean
        assert ("the metric seen tells it" in found.note) == (not other)
        assert found.threat_model == ("A" if other else "C")


def test_a_large_batch_of_one_step_is_read_in_closed_form_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedleak.audit.ladder.MOST_SAMPLES", 4)
    monkeypatch.setattr("fedleak.audit.ladder.matching", None)
    monkeypatch.setattr("fedleak.audit.ladder.MOST_OF_ALL", 6)
    wide = ONE_STEP.replace("(1,", "(6 + number // 2,").replace(
        "Linear(108, 24), nn.Sigmoid(), nn.Linear(24, 4)",
        "Linear(108, 200), nn.ReLU(), nn.Linear(200, 4)",
    )
    _, observed, victims = observe(tmp_path, "images", task=wide)
    assert [victim.known.knowledge.num_samples for victim in victims] == [6, 6, 7, 7]
    answer, scores = inputs(observed, victims[1:3], seconds=300)
    assert [(score.key, score.attack) for score in scores] == [(victims[1].key, "exact_batch")]
    assert scores[0].value < 1e-3 < scores[0].guess
    assert "updates of more than 6 samples are not searched" in answer.sentence
    answer, scores = inputs(observed, victims[2:], seconds=300)
    assert (answer.status, scores) == ("not tried", [])


def test_a_client_of_no_samples_is_left_out_with_its_reason(tmp_path: Path) -> None:
    task = ONE_STEP.replace("torch.rand(1, 3, 6, 6)", "torch.rand(min(1, number), 3, 6, 6)")
    task = task.replace("torch.randint(4, (1,))", "torch.randint(4, (min(1, number),))")
    task = task.replace("(model(x), y)", "(model(x), y, reduction='sum')")
    app = write_kind(tmp_path / "app", "images", task=task)
    observed = run_app(app, tmp_path / "out", clients=4, rounds=1, engine=in_process)
    victims, reasons = find_victims(app, observed)
    assert len(victims) == 3
    assert len(reasons) == 1
    assert "Expected samples in each step of the client" in reasons[0]
