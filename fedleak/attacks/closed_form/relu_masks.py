"""Which units of a ReLU were on, where their values do not tell: by the gradient of a bias."""

from dataclasses import replace

import torch
from torch import Tensor

from fedleak.attacks.closed_form.estimates import Signal

# Gates in doubt in a channel whose subsets are all looked at; if none will do, those of more gates.
# Of many, some subset or other explains anything.
LOOKED_AT = (8, 11, 14)
# What a subset may leave unexplained, as a share of the absolute sum of all gradients, which are
# rounded, or of those of its gates, so much that one of all subsets does by chance.
ROUNDING, CHANCE = 3e-7, 0.01


def settled(entering: Signal, leaving: Signal, bias: Tensor) -> Signal:
    """What entered a ReLU, gates in doubt opened or closed as a bias before it has felt them.

    The gradient of a bias is the sum of the gradients of the layer's outputs, channel by channel,
    and a ReLU lets those pass alone whose unit was on. So of the gates in doubt those are open
    whose gradients make up what is missing in the sum of the others. Where too many are in doubt,
    those are looked at whose values are nearest to what divides the guess, and where none of their
    subsets explains the bias's gradient, the guess stays.

    Args:
        entering: what is known of the ReLU's input, ``(samples, out, H, W)``; of gates in doubt,
            those are guessed to be open that let the gradient pass.
        leaving: of its output, of the same shape.
        bias: gradient of the bias of the layer before it, ``(out,)``.

    Returns:
        The input, with the gates that are settled known or at most 0, and their gradients right.
    """
    doubt = ~(entering.known | entering.at_most)
    gradient = entering.gradient.clone()
    is_open = gradient != 0
    opened, closed = torch.zeros_like(doubt), torch.zeros_like(doubt)
    for channel in doubt.any(dim=3).any(dim=2).any(dim=0).nonzero().flatten().tolist():
        places = doubt[:, channel].nonzero(as_tuple=True)
        for most in LOOKED_AT:
            values = entering.value[:, channel][places]
            chosen = _dividing(values, is_open[:, channel][places], most)
            samples, rows, columns = (part[chosen] for part in places)
            at = samples, torch.full_like(samples, channel), rows, columns
            others = gradient[:, channel].sum() - gradient[at].sum()
            allowed = ROUNDING * leaving.gradient[:, channel].abs().sum()
            found = _subset(leaving.gradient[at], is_open[at], bias[channel] - others, allowed)
            if found is not None:
                gradient[at] = leaving.gradient[at] * found
                # Then the guess of the others is right, too.
                passing = gradient[:, channel] != 0
                opened[:, channel] = doubt[:, channel] & passing
                closed[:, channel] = doubt[:, channel] & ~passing
                break
            if len(chosen) == len(values):
                break
    return replace(
        entering,
        value=torch.where(closed, 0.0, entering.value),
        error=torch.where(opened, leaving.error, entering.error),
        at_most=entering.at_most | closed,
        gradient=gradient,
    )


def _subset(parts: Tensor, guess: Tensor, total: Tensor, allowed: Tensor) -> Tensor | None:
    """Which parts add up to the total; of several sets that do, that with the fewest changes."""
    subsets = torch.cartesian_prod(*[torch.tensor([False, True])] * len(parts))
    subsets = subsets.reshape(-1, len(parts))
    allowed = torch.maximum(allowed, CHANCE / len(subsets) * parts.abs().sum())
    explains = (subsets.to(parts) @ parts - total).abs() <= allowed
    if not bool(explains.any()):
        return None
    changes = (subsets != guess).sum(dim=1)
    best: Tensor = subsets[torch.where(explains, changes, len(parts) + 1).argmin()]
    return best


def _dividing(values: Tensor, guess: Tensor, most: int) -> Tensor:
    """Numbers of the values next to what divides the guess, half on each side if there are many."""
    order = values.argsort()
    low, high = order[~guess[order]].flip(0), order[guess[order]]
    half = most // 2
    return torch.cat([low[: most - min(len(high), half)], high[: most - min(len(low), half)]])
