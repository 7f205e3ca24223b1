"""Ranking metrics of a recommender on hidden items."""

import torch
from torch import Tensor
from torchmetrics.functional.retrieval import retrieval_normalized_dcg


def mask_given_items(scores: Tensor, given: Tensor) -> Tensor:
    """Exclude the items that were given to the model from the ranking.

    Args:
        scores: ``(users, items)``, higher is better.
        given: ``(users, items)``, positive for the items that were given to the model.

    Returns:
        The scores ``(users, items)``, minus infinity for the given items.
    """
    return scores.masked_fill(given > 0, -torch.inf)


def ndcg(scores: Tensor, hidden: Tensor, k: int) -> Tensor:
    """Normalised discounted cumulative gain of the k best items (Liang et al., WWW 2018, 4.3).

    Args:
        scores: ``(users, items)``, from :func:`mask_given_items`.
        hidden: ``(users, items)``, positive for the hidden items; each user has at least one.
        k: number of recommended items, at least 1.

    Returns:
        ``(users,)``, from 0 to 1.
    """
    # torchmetrics needs finite scores; the given items stay at the end of the ranking.
    low = scores.masked_fill(scores == -torch.inf, torch.finfo(scores.dtype).min)
    return torch.stack(
        [
            retrieval_normalized_dcg(row, truth > 0, top_k=k)
            for row, truth in zip(low, hidden, strict=True)
        ]
    )


def recall(scores: Tensor, hidden: Tensor, k: int) -> Tensor:
    """Recall@k: hidden items among the k best, divided by the smaller of k and their number.

    The denominator is that of Liang et al. (WWW 2018, section 4.3); torchmetrics divides by the
    number of hidden items.

    Args:
        scores: see :func:`ndcg`.
        hidden: see :func:`ndcg`.
        k: see :func:`ndcg`.

    Returns:
        ``(users,)``, from 0 to 1.
    """
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    found = (hidden > 0).gather(1, best).sum(dim=1)
    return found / (hidden > 0).sum(dim=1).clamp(max=k)
