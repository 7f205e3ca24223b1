"""Scores of readings, against assignments and means by hand."""

import itertools

import pytest
import torch

from fedleak.config import Metrics
from fedleak.runs.readings import as_reconstruction, match_reading, score_reading
from fedleak.runs.scoring import ImageScoring
from fedleak.servers import Reading
from fedleak.updates.truth import GroundTruth
from tests.cases import pictures

SCORING = ImageScoring(Metrics(), (0.0,), (1.0,))
TRUTH = GroundTruth(pictures(5, (1, 8, 8), seed=3).float(), torch.tensor([0, 1, 2, 3, 1]))


def reading_of(samples: list[int], labels: list[int] | None = None, noise: float = 0) -> Reading:
    """A reading of these samples of the truth, with the pixels as features."""
    inputs = TRUTH.inputs[samples] + noise
    known = torch.tensor(labels or [-1] * len(samples))
    certified = torch.arange(len(samples)) % 2 == 0
    return Reading(inputs, known, certified, 3.0 * inputs.flatten(1))


@pytest.mark.parametrize("by_features", [False, True])
def test_found_samples_are_assigned_as_the_cheapest_of_all_ways(by_features: bool) -> None:
    reading = reading_of([4, 2, 0], noise=0.01)
    features = TRUTH.inputs.flatten(1) if by_features else None
    assert match_reading(reading, TRUTH, features) == [(0, 4), (1, 2), (2, 0)]
    flat = reading.inputs.flatten(1)
    errors = torch.cdist(flat, TRUTH.inputs.flatten(1)).square()
    best = min(
        itertools.permutations(range(5), 3),
        key=lambda p: sum(errors[i, j] for i, j in enumerate(p)),
    )
    assert best == (4, 2, 0)


def test_a_sample_never_counts_twice() -> None:
    rows, facts = score_reading(reading_of([1, 1, 1]), TRUTH, SCORING)
    assert len({row["sample"] for row in rows}) == 3
    assert [row["match"] for row in rows] == [0, 1, 2]
    assert sum(row["success"] for row in rows) == facts["success"] == 1
    more = reading_of([0, 1, 2, 3, 4, 4, 4])
    rows, facts = score_reading(more, TRUTH, SCORING)
    assert (facts["found"], facts["matched"], len(rows)) == (7, 5, 5)
    assert sorted(row["sample"] for row in rows) == [0, 1, 2, 3, 4]


def test_scores_and_a_guess_beside_them() -> None:
    reading = reading_of([3, 0], labels=[3, 2])
    guess = torch.full((1, 8, 8), 0.5)
    features = TRUTH.inputs.flatten(1)
    rows, facts = score_reading(reading, TRUTH, SCORING, features=features, guess=guess)
    assert [row["sample"] for row in rows] == [3, 0]
    assert [row["label_accuracy"] for row in rows] == [1.0, 0.0]
    assert [row["certified"] for row in rows] == [1, 0]
    assert all(row["ssim"] == pytest.approx(1) for row in rows)
    assert all(row["feature_cosine"] == pytest.approx(1) for row in rows)
    assert facts["exact"] == 2
    alone = GroundTruth(TRUTH.inputs[[3, 0]], TRUTH.labels[[3, 0]])
    both = SCORING.scores(
        alone, as_reconstruction(Reading(guess.expand(2, 1, 8, 8), *[torch.zeros(2)] * 3), 0.0)
    )
    assert facts["ssim_of_guess"] == pytest.approx(sum(row["ssim"] for row in both) / 2)
    assert facts["ssim"] == pytest.approx(1)
    wrong, facts = score_reading(reading, TRUTH, SCORING, features=features.flip(1))
    assert facts["exact"] == 0
    assert all(row["feature_cosine"] < 0.99 for row in wrong)


def test_nothing_read_and_nothing_known() -> None:
    rows, facts = score_reading(reading_of([]), TRUTH, SCORING)
    assert rows == []
    assert (facts["found"], facts["matched"], facts["ssim"]) == (0, 0, None)
    rows, facts = score_reading(reading_of([1, 2]), None, SCORING)
    assert rows == [
        {"sample": 0, "match": 0, "certified": 1}, {"sample": 1, "match": 1, "certified": 0},
    ]  # fmt: skip
    assert facts == {"found": 2, "certified": 1}
