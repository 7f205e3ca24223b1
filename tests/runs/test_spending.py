"""Counting by client and round, weights of the mean, and the limits of a budget."""

import csv
from pathlib import Path

import pytest

from fedleak.config import Budget, Privacy
from fedleak.errors import BadInput
from fedleak.privacy import compose
from fedleak.privacy.mechanisms import local_dp_mod, noise
from fedleak.runs.spending import COLUMNS, Spending, check_budget, strongest, write_privacy

GOOD = noise(sigma=2.0, max_norm=0.5)
DECLARED = local_dp_mod(clipping_norm=1.0, sensitivity=2.0, epsilon=0.5, delta=1e-5)


def test_each_client_is_counted_by_itself(tmp_path: Path) -> None:
    spending = Spending("net", lambda client, weight: [GOOD], Privacy())
    spending.record(1, [0, 1], None)
    new = spending.record(2, [1], None)
    one, two = (compose({GOOD: rounds}, 1e-5).epsilon for rounds in (1, 2))
    assert [(row.client, row.epsilon, row.epsilon_so_far) for row in new] == [(1, one, two)]
    (most,) = spending.facts()["spent"]
    assert (most["epsilon"], most["rounds"], most["mechanisms"]) == (two, 2, ["noise"])
    write_privacy(tmp_path / "privacy.csv", spending.rows)
    with (tmp_path / "privacy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["round"], row["client"]) for row in rows] == [("1", "0"), ("1", "1"), ("2", "1")]
    assert float(rows[2]["epsilon_so_far"]) == two


def test_the_largest_weight_is_of_those_in_the_mean() -> None:
    seen: list[float | None] = []

    def mechanisms(client: int, weight: float | None) -> list[object]:
        seen.append(weight)
        return []

    spending = Spending(
        "net", mechanisms, Privacy(Budget(1.0)), sizes=[1, 2, 5],  # type: ignore[arg-type]
        left_out=lambda round_, client: (round_, client) == (2, 2),
    )  # fmt: skip
    assert spending.weight(1, {0: 1, 2: 5}) == pytest.approx(5 / 6)
    assert spending.weight(2, {0: 1, 1: 3, 2: 5}) == pytest.approx(3 / 4)
    assert spending.weight(2, {2: 5}) is None
    assert spending.exceeded(1, [0, 1, 2]) == ""
    assert set(seen) == {5 / 8}


def test_a_round_is_refused_that_one_client_cannot_afford() -> None:
    two, three = (compose({GOOD: rounds}, 1e-5).epsilon for rounds in (2, 3))
    budget = Privacy(Budget(two))
    spending = Spending("net", lambda client, weight: [GOOD], budget)
    for round_ in (1, 2):
        assert spending.exceeded(round_, [0]) == ""  # up to the budget itself
        spending.record(round_, [0], None)
    assert spending.exceeded(3, [1, 2]) == ""
    reason = spending.exceeded(3, [1, 0])
    assert reason.startswith(f"round 3 would bring client 0 to an epsilon of {three:.3g} at delta")
    assert len(spending.rows) == 2  # nothing was counted by asking


def test_of_one_update_the_best_mechanism_counts() -> None:
    """Noise after noise is post-processing: epsilons of one release do not add up."""
    bare, clip = noise(sigma=1.0), noise(sigma=0.0, max_norm=1.0)
    assert strongest([bare, GOOD, DECLARED], 1e-5) == [
        min((GOOD, DECLARED), key=lambda m: compose({m: 1}, 1e-5).epsilon)
    ]
    assert strongest([clip, GOOD], 1e-5) == [GOOD]
    assert strongest([clip], 1e-5) == [clip]
    assert strongest([], 1e-5) == []


def test_a_budget_is_checked_before_the_first_round() -> None:
    one = compose({GOOD: 1}, 1e-5).epsilon
    check_budget(Budget(one), [GOOD])
    with pytest.raises(BadInput, match=r"of at least .*, which one round of noise spends") as error:
        check_budget(Budget(one / 2), [GOOD])
    named = float(str(error.value).split("at least ")[1].split(",")[0])
    check_budget(Budget(named), [GOOD])
    with pytest.raises(BadInput, match=r"a mechanism of differential privacy .*, got none"):
        check_budget(Budget(1.0), [])
    with pytest.raises(BadInput, match="finite epsilon of noise"):
        check_budget(Budget(1.0), [noise(sigma=1.0)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0.0}, "`privacy.budget.epsilon` to be positive, got 0.0"),
        ({"epsilon": 1.0, "delta": 1.0}, "`delta` of privacy.budget to be above 0 and below 1"),
    ],
)
def test_a_budget_has_limits(settings: dict[str, float], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Budget(**settings)
