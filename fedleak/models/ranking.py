"""How well scores rank the items that were hidden from a recommender."""

import torch
from torch import Tensor
from torchmetrics.functional.retrieval import retrieval_normalized_dcg


def rank_scores(scores: Tensor, given: Tensor) -> Tensor:
    """Scores in which no item counts that the model was told.

    Args:
        scores: ``(users, items)``, higher is better.
        given: ``(users, items)``, positive at the items that the model was told.

    Returns:
        The scores, minus infinity at those items.
    """
    return scores.masked_fill(given > 0, -torch.inf)


def ndcg(scores: Tensor, hidden: Tensor, k: int) -> Tensor:
    """Normalised discounted cumulative gain of the k best items (Liang et al., WWW 2018, 4.3).

    Args:
        scores: ``(users, items)``, of :func:`rank_scores`.
        hidden: ``(users, items)``, positive at the items to be found; each user has some.
        k: number of items that are recommended.

    Returns:
        ``(users,)``, from 0 to 1.
    """
    # Beyond the k best nothing counts, and what was given must not: it stands last.
    low = scores.masked_fill(scores == -torch.inf, torch.finfo(scores.dtype).min)
    return torch.stack(
        [
            retrieval_normalized_dcg(row, truth > 0, top_k=k)
            for row, truth in zip(low, hidden, strict=True)
        ]
    )


def recall(scores: Tensor, hidden: Tensor, k: int) -> Tensor:
    """The share of the hidden items among the k best; all of them are 1 even if k is less.

    torchmetrics divides by the number of hidden items; the recommenders' papers by the smaller one
    of that and k (Liang et al., WWW 2018, section 4.3).

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
