"""Scores of sequences of numbers, by hand."""

import pytest
import torch

from fedleak.attacks import Reconstruction
from fedleak.metrics.tokens import score_tokens
from fedleak.updates.truth import GroundTruth

LABELS = torch.zeros(2, dtype=torch.long)
TRUE = torch.tensor([[7, 3, 44, 3], [1, 1, 9, 0]])


def test_positions_and_sets_by_hand() -> None:
    """The sequences come in another order; 3 of 4 positions of the first, all of the second."""
    found = Reconstruction(torch.tensor([[1, 1, 9, 0], [7, 44, 44, 3]]), LABELS)
    first, second = score_tokens(GroundTruth(TRUE, LABELS), found)
    assert (first.match, second.match) == (1, 0)
    assert (first.token_accuracy, first.exact) == (0.75, False)
    assert (second.token_accuracy, second.exact) == (1.0, True)
    assert (first.precision, first.recall, first.f1) == (1.0, 1.0, 1.0)


def test_a_set_without_an_order() -> None:
    unknown = torch.full((2, 4), -1)
    rows = {"embed": torch.tensor([1, 3, 7, 9, 30])}
    (score, _) = score_tokens(GroundTruth(TRUE, LABELS), Reconstruction(unknown, LABELS, rows=rows))
    assert (score.token_accuracy, score.exact) == (0.0, False)
    assert (score.precision, score.recall) == pytest.approx((4 / 5, 4 / 6))
    assert score.f1 == pytest.approx(8 / 11)


def test_nothing_found() -> None:
    (score, _) = score_tokens(
        GroundTruth(TRUE, LABELS), Reconstruction(torch.full((2, 4), -1), LABELS)
    )
    assert (score.precision, score.recall, score.f1) == (0.0, 0.0, 0.0)
