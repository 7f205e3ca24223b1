"""Correction of shares of labels by shadow clients that have the shares which were found."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fedleak.audit.shadow_clients import Shadow

# Each pass starts from what the one before has found.
PASSES = 3


def correct_shares(
    found: Tensor,
    learned: Callable[[Sequence[Mapping[str, Tensor]]], Tensor],
    train: Callable[[Tensor, int], Sequence[Shadow] | None],
    passes: int = PASSES,
) -> tuple[Tensor, int]:
    """Subtract the error that the map makes for shadow clients with the shares that it has found.

    The map from a client's change of weights to its shares is a regression over all kinds of
    clients, and is wrong by much the same for clients that are alike. Shadow clients with the
    shares that were found for a client tell by how much; this is repeated with the shares that are
    so corrected, until shadow clients give the answer that the client gives. It is indirect
    inference (Gourieroux, Monfort and Renault, Journal of Applied Econometrics 8, 1993, section 2),
    with the map's answer as auxiliary estimate.

    Args:
        found: shares by the map ``(clients, classes)``; each row adds up to 1.
        learned: the map, :class:`fedleak.audit.shadow_clients.LabelShares`.
        train: trains shadow clients with given shares ``(clients, classes)`` in a given pass;
            those for client ``c`` have numbers ``c``, ``c + clients`` and so on. None if there is
            no time.
        passes: number of passes, at least 0.

    Returns:
        The shares ``(clients, classes)``, and the number of passes for which there was time.
    """
    shares, clients = found, len(found)
    since_second: list[Tensor] = []
    for done in range(passes):
        shadows = train(shares, done)
        if shadows is None:
            return shares, done
        if not shadows:
            continue
        errors = learned([one.change for one in shadows]) - torch.stack([
            one.shares for one in shadows
        ]).to(found)  # fmt: skip
        of = torch.tensor([one.number % clients for one in shadows])
        numbers = torch.bincount(of, minlength=clients).clamp_min(1)
        mean = torch.zeros_like(found).index_add_(0, of, errors) / numbers[:, None]
        if done:
            since_second.append(mean)
            mean = torch.stack(since_second).mean(0)
        corrected = (found - mean).clamp_min(0)
        whole = corrected.sum(1, keepdim=True)
        shares = torch.where(whole > 0, corrected / whole, shares)
    return shares, passes
