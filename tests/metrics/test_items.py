"""Scores of users' items."""

import math

import pytest
import torch

from fedleak.attacks import Reconstruction
from fedleak.metrics import score_items
from fedleak.updates.truth import GroundTruth


def test_items_by_hand() -> None:
    """The user has items 0 and 1; items 0, 2 and 3 are found, as 0.59 is below the threshold."""
    labels = torch.zeros(1, dtype=torch.long)
    truth = GroundTruth(torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]), labels)
    found = Reconstruction(torch.tensor([[0.6, 0.59, 0.7, 1.0, 0.0]]), labels)
    (item,) = score_items(truth, found)
    assert (item.precision, item.recall) == pytest.approx((1 / 3, 1 / 2))
    assert item.f1 == pytest.approx(0.4)
    assert item.mse == pytest.approx((0.4**2 + 0.41**2 + 0.7**2 + 1) / 5)
    assert not item.exact
    (easier,) = score_items(truth, found, threshold=0.5)
    assert (easier.precision, easier.recall) == pytest.approx((1 / 2, 1))
    (same,) = score_items(truth, Reconstruction(0.8 * truth.inputs, labels))
    assert (same.precision, same.recall, same.f1, same.exact) == (1, 1, 1, True)
    (nothing,) = score_items(truth, Reconstruction(torch.full((1, 5), math.nan), labels))
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.exact) == (0, 0, 0, False)


def test_users_of_a_batch_are_matched() -> None:
    labels = torch.zeros(2, dtype=torch.long)
    inputs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    scores = score_items(GroundTruth(inputs, labels), Reconstruction(inputs.flip(0), labels))
    assert [(item.sample, item.match, item.f1) for item in scores] == [(0, 1, 1), (1, 0, 1)]
