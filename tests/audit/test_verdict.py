"""What an audit concludes, from answers made by hand."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedleak.audit.verdict import Answer, Estimate, Verdict, read_limits
from fedleak.errors import BadInput


def answer(values: list[float], guesses: list[float], **change: Any) -> Answer:
    """SSIM of images beside that of a guess."""
    settings: dict[str, Any] = {
        "rung": 3, "question": "inputs", "measure": "SSIM", "answer": Estimate.of(values),
        "guess": Estimate.of(guesses), "perfect": 1.0, "threat_model": "C", "attack": "iga",
        "gains": tuple(a - b for a, b in zip(values, guesses, strict=True)),
        "setting": "round 1, 1 sample, 1 step of sgd",
    }  # fmt: skip
    return Answer(**settings | change)


GOOD = answer([0.9, 0.8, 0.95, 0.85], [0.1, 0.2, 0.15, 0.1])
POOR = answer([0.12, 0.1, 0.2, 0.1], [0.1, 0.2, 0.15, 0.1])


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(150):
        interval = Estimate.of(list(random.exponential(size=30)), seed)
        covered += interval.low <= 1.0 <= interval.high
    assert 0.86 < covered / 150 <= 1.0


def test_intervals_of_few_and_equal_values() -> None:
    assert math.isnan(Estimate.of([]).mean)
    assert math.isnan(Estimate.of([0.5]).low)
    # Student's for few values: 0.5 +- 12.7 standard errors.
    few = Estimate.of([0.4, 0.6])
    assert (few.low, few.high) == pytest.approx((0.5 - 1.27062, 0.5 + 1.27062), abs=1e-4)
    assert Estimate.of([0.5] * 3) == Estimate(0.5, 0.5, 0.5, 3)
    assert str(Estimate.of([])) == "-"
    assert str(Estimate.of([0.25])) == "0.25"


def test_an_answer_leaks_if_it_beats_the_guess_of_the_same_victims() -> None:
    assert GOOD.status == "leaks"
    assert POOR.status == "not shown"
    assert answer([], [], note="no time was left").status == "not tried"
    assert (
        "inputs: not tried: no time was left." in answer([], [], note="no time was left").sentence
    )
    assert GOOD.sentence.startswith("inputs leak; SSIM: 0.875 (")
    assert answer([1.0, 1.0], [0.0, 0.0], question="set of tokens").sentence == (
        "set of tokens leaks; SSIM: 1 (1 to 1), a guess without the update: 0 (0 to 0), n = 2."
    )
    assert "inputs were not shown to leak" in POOR.sentence
    # 0.74 of the way from 0.1375 to 1 is 0.7375 / 0.8625.
    assert GOOD.share == pytest.approx(0.7375 / 0.8625)
    # Of one victim there is no interval, and so no leak unless the answer is exact.
    assert answer([0.9], [0.1]).status == "not shown"
    assert answer([1.0], [0.1]).status == "leaks"


def test_a_number_told_in_clear_that_a_guess_tells_as_well() -> None:
    told = {"rung": 1, "question": "number of samples", "threat_model": "A"}
    same = answer([1.0, 1.0], [1.0, 1.0], **told)
    assert same.status == "not shown"
    assert same.sentence.startswith(
        "number of samples is told in clear, and a guess is as good; SSIM: 1 (1 to 1)"
    )
    wrong = answer([0.0, 0.0], [0.0, 0.0], **told)
    assert "number of samples was not shown to leak" in wrong.sentence
    assert "leaks" in answer([1.0, 1.0], [0.0, 0.0], **told).sentence


def test_few_answers_that_are_exact_leak() -> None:
    # Student's interval of three gains is wide however exact the answers are.
    exact = answer([0.001, 0.0, 0.0], [1.0, 0.5, 0.5], perfect=0.0, gains=(0.999, 0.5, 0.5))
    assert Estimate.of(exact.gains).low < 0
    assert exact.status == "leaks"
    one = answer([0.0003], [0.5], perfect=0.0, gains=(0.4997,))
    assert one.status == "leaks"
    assert answer([0.13], [0.437], perfect=0.0, gains=(0.307,)).status == "not shown"
    worse = answer([0.0, 0.0, 0.01], [1.0, 1.0, 0.0], perfect=0.0, gains=(1.0, 1.0, -0.01))
    assert worse.status == "not shown"
    same = answer([1.0, 1.0], [1.0, 1.0])
    assert same.status == "not shown"


def test_no_interval_reaches_beyond_the_best_value() -> None:
    few = answer([0.9, 0.99], [0.5, 0.9])
    assert (few.answer.high, few.guess.high) == (1.0, 1.0)
    assert few.answer.low == Estimate.of([0.9, 0.99]).low
    distances = answer([0.01, 0.1], [0.5, 0.9], perfect=0.0, gains=(0.49, 0.8))
    assert (distances.answer.low, distances.guess.low) == (0.0, 0.0)
    assert distances.guess.high == Estimate.of([0.5, 0.9]).high
    bounded = answer([0.01, 0.1], [0.5, 0.9], perfect=0.0, gains=(0.49, 0.8), worst=1.0)
    assert (bounded.guess.high, bounded.guess.mean) == (1.0, 0.7)
    shares = answer([0.9, 0.2], [0.1, 0.3], worst=0.0)
    assert (shares.answer.low, shares.guess.low) == (0.0, 0.0)


def test_a_distance_is_better_if_it_is_smaller() -> None:
    distances, guesses = [0.1, 0.08, 0.12], [0.4, 0.5, 0.45]
    found = answer(
        distances, guesses, perfect=0.0, question="label shares",
        gains=tuple(b - a for a, b in zip(distances, guesses, strict=True)),
    )  # fmt: skip
    assert found.status == "leaks"
    assert found.share == pytest.approx(0.35 / 0.45)


@pytest.mark.parametrize(
    ("answers", "canary", "overall", "begins"),
    [
        ((GOOD,), None, "leaks", "Leaks: inputs."),
        ((POOR,), True, "nothing found", "Nothing found by these attackers"),
        ((POOR,), False, "not proven", "Not proven"),
        ((POOR, answer([], [])), True, "not proven", "Not proven: a question was not tried"),
        ((answer([0.1, 0.1], [0.2, 0.2], conclusive=False),), True, "not proven", "Not proven"),
        ((POOR,), None, "not proven", "Not proven"),
        # What the sum tells, the updates tell: a server that sees those was tried.
        ((POOR, answer([], [], rung=0)), True, "nothing found", "Nothing found"),
        ((POOR, answer([0.9, 0.85], [0.1, 0.1], rung=0)), True, "leaks",
         "Leaks: inputs from the sum over clients alone."),
        ((answer([], [], rung=0),), False, "not proven", "Not proven"),
        # Servers that change what they send are not among the attackers, which is said.
        ((POOR, answer([], [], rung=4)), True, "nothing found",
         "Nothing found by these attackers in this setting; another attacker may. A server that "
         "changes what it sends was not tried."),
        ((answer([], []), answer([], [], rung=5)), True, "not proven", "Not proven: a question"),
        # What messages say in clear is no finding about the data.
        ((answer([1.0, 1.0], [0.0, 0.0], rung=1, question="number of samples"),), True,
         "nothing found", "Nothing found"),
    ],
)  # fmt: skip
def test_overall(
    answers: tuple[Answer, ...], canary: bool | None, overall: str, begins: str
) -> None:
    verdict = Verdict(answers, canary)
    assert verdict.overall == overall
    assert verdict.sentence.startswith(begins)


def test_limits_and_exit_codes() -> None:
    verdict = Verdict((GOOD, POOR), True)
    assert verdict.exit_code({}) == 0
    assert verdict.exit_code(read_limits(["0.5"])) == 3
    assert verdict.exit_code(read_limits(["inputs=0.9"])) == 0
    assert verdict.exit_code(read_limits(["inputs=0.9", "0.1"])) == 0
    told = answer([1.0, 1.0], [0.0, 0.0], rung=1, question="number of samples")
    assert Verdict((told, POOR), True).exit_code({"*": 0.5}) == 0
    assert Verdict((told, POOR), True).exit_code({"number of samples": 0.5}) == 3
    # What is not proven holds no limit.
    assert Verdict((POOR,), False).exit_code({"*": 0.5}) == 3
    # Another question that leaks below its limit does not prove the attacks.
    shares = answer([0.2], [0.1], rung=2, question="shares of labels", gains=(0.1, 0.1, 0.1))
    assert Verdict((shares, POOR), True).exit_code({"inputs": 0.1}) == 0
    assert Verdict((shares, POOR), False).exit_code({"inputs": 0.1}) == 3
    assert Verdict((shares, replace(POOR, conclusive=False)), True).exit_code({"inputs": 0.1}) == 3
    with pytest.raises(BadInput, match=r"Did you mean `inputs`"):
        read_limits(["imputs=0.5"])
    with pytest.raises(BadInput, match="from 0 to 1"):
        read_limits(["2"])
    with pytest.raises(BadInput, match=r"QUESTION=0\.1"):
        read_limits(["inputs"])


def test_a_limit_of_a_question_that_was_not_tried_is_not_kept() -> None:
    untried = answer([], [], question="shares of labels", rung=2, tried=False, gains=())
    verdict = Verdict((GOOD, untried), canary=True)
    assert verdict.overall == "leaks"
    assert verdict.exit_code({"shares of labels": 0.5}) == 3
    assert verdict.exit_code({"inputs": 1.0}) == 0


def test_the_plain_values_hold_what_was_concluded() -> None:
    read = Verdict((GOOD, answer([], [])), True, "SSIM 0.99").to_dict()
    assert read["overall"] == "leaks"
    assert [row["status"] for row in read["answers"]] == ["leaks", "not tried"]
    assert read["answers"][0]["answer"]["n"] == 4
    assert read["answers"][1]["share"] is None
    json.dumps(read, allow_nan=False)


@pytest.mark.parametrize(("name", "value"), [("rung", 7), ("threat_model", "Z")])
def test_what_is_no_rung_or_threat_model(name: str, value: Any) -> None:
    with pytest.raises(BadInput):
        answer([0.5, 0.6], [0.1, 0.2], **{name: value})


@pytest.mark.parametrize(
    "note",
    [
        "no time was left for 3 of 4",
        "gradient matching needs about 30 s a client, more than the budget allows",
        "40 shadow clients need about 90 s, more than the 3 s that the budget has for them",
        "iga took more than its share of the time",
    ],
)
def test_what_the_time_did_not_suffice_for_can_be_asked_again(note: str) -> None:
    short = Verdict((GOOD, answer([], [], question="shares of labels", rung=2, note=note)), True)
    assert short.advice == (
        "The time did not suffice for: shares of labels. The same command with `--resume` and a "
        "larger `--budget` asks again."
    )
    assert short.to_dict()["advice"] == short.advice
    other = answer([], [], note="the clients' optimiser cannot be followed")
    assert Verdict((GOOD, other), True).advice == ""
    part = answer([0.9], [0.1], conclusive=False, note=note)
    assert Verdict((part,), True).advice.startswith("The time did not suffice for: inputs.")
