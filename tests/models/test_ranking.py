"""Ranking metrics against their definitions."""

import math

import pytest
import torch
from torch import Tensor

from fedleak.models.ranking import mask_given_items, ndcg, recall

ITEMS = 30


def vectors(count: int) -> Tensor:
    """Random interaction vectors ``(count, ITEMS)``."""
    random = torch.Generator().manual_seed(1)
    return (torch.rand(count, ITEMS, generator=random) < 0.3).float()


def literal_metrics(scores: Tensor, hidden: Tensor, k: int) -> tuple[float, float]:
    """NDCG and recall of one user, from the definitions."""
    order = sorted(range(len(scores)), key=lambda item: -float(scores[item]))[:k]
    relevant = {item for item in range(len(scores)) if hidden[item] > 0}
    gain = sum(1 / math.log2(rank + 2) for rank, item in enumerate(order) if item in relevant)
    best = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(relevant))))
    return gain / best, len(relevant & set(order)) / min(k, len(relevant))


@pytest.mark.parametrize("k", [1, 4, 100])
def test_ranking_metrics_by_hand(k: int) -> None:
    random = torch.Generator().manual_seed(3)
    scores = torch.randn(5, ITEMS, generator=random)
    given, hidden = vectors(5), vectors(5).flip(1)
    hidden = hidden * (given == 0)
    ranked = mask_given_items(scores, given)
    expected = [literal_metrics(*pair, k) for pair in zip(ranked, hidden, strict=True)]
    assert ndcg(ranked, hidden, k).tolist() == pytest.approx([pair[0] for pair in expected])
    assert recall(ranked, hidden, k).tolist() == pytest.approx([pair[1] for pair in expected])


def test_given_items_are_never_recommended() -> None:
    scores = torch.tensor([[9.0, 1.0, 2.0, 3.0]])
    given, hidden = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0, 0, 0, 1.0]])
    ranked = mask_given_items(scores, given)
    assert ndcg(ranked, hidden, 1).item() == 1
    assert recall(ranked, hidden, 1).item() == 1
