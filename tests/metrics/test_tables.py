"""Scores of rows of a table, by hand."""

import math

import pytest
import torch

from fedleak.attacks import Reconstruction
from fedleak.data.columns import TableColumn
from fedleak.metrics.tables import score_tables
from fedleak.updates.truth import GroundTruth

COLUMNS = [
    TableColumn("age", 0, mean=40.0, std=10.0, guess=40.0, spread=10.0),
    TableColumn("town", 1, ("Bonn", "Kiel", "Ulm"), guess=2.0),
    TableColumn("floor", 4, mean=1.0, std=0.5, guess=1.0, spread=0.5),
]
LABELS = torch.zeros(2, dtype=torch.long)
TRUE = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.2], [-2.0, 0.0, 0.0, 1.0, -3.0]])


def test_columns_by_hand() -> None:
    """Row 0: the age misses by 0.3 deviations, the town is right, the floor misses by 0.8."""
    found = torch.tensor([[-2.0, 0.0, 0.4, 0.9, -3.0], [1.3, 0.2, 0.3, 0.1, 1.0]])
    first, second = score_tables(GroundTruth(TRUE, LABELS), Reconstruction(found, LABELS), COLUMNS)
    assert (first.match, second.match) == (1, 0)
    assert [column.right for column in first.columns] == [True, True, False]
    assert first.right == pytest.approx(2 / 3)
    assert first.error == pytest.approx((0.3 + 0.8) / 2)
    # The mean age and the most frequent town are wrong, the mean floor is near.
    assert [column.guessed for column in first.columns] == [False, False, True]
    assert first.error_of_guess == pytest.approx((1.0 + 0.2) / 2)
    assert first.mse == pytest.approx((0.3**2 + 0.2**2 + 0.7**2 + 0.1**2 + 0.8**2) / 5)
    assert not first.exact
    assert (second.right, second.exact, second.error) == (1.0, True, 0.0)
    assert second.right_of_guess == pytest.approx(1 / 3)
    assert [column.true for column in second.columns] == [20.0, 2.0, -0.5]


def test_categories_alone_have_no_error() -> None:
    (score, _) = score_tables(GroundTruth(TRUE, LABELS), Reconstruction(TRUE, LABELS), [COLUMNS[1]])
    assert math.isnan(score.error)
    assert (score.right, score.exact) == (1.0, True)


def test_a_diverged_row_is_wrong_everywhere() -> None:
    (score, _) = score_tables(
        GroundTruth(TRUE, LABELS), Reconstruction(torch.full((2, 5), math.nan), LABELS), COLUMNS
    )
    assert (score.right, score.exact) == (0.0, False)
    assert math.isnan(score.error)


def test_other_shapes_are_a_fault() -> None:
    with pytest.raises(ValueError, match="Expected a reconstruction of shape"):
        score_tables(GroundTruth(TRUE, LABELS), Reconstruction(TRUE[:, :4], LABELS), COLUMNS)
