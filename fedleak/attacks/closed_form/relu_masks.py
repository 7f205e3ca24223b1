"""Activation pattern of a ReLU where values leave it open, from the gradient of a bias."""

from dataclasses import replace

import torch
from torch import Tensor

from fedleak.attacks.closed_form.estimates import Estimate

# Number of undetermined units of a channel whose masks are enumerated; the next number is tried if
# no mask fits. With many free units some mask fits by chance, so that the number is bounded.
ENUMERATED = (8, 11, 14)
# Residual that a mask may leave: rounding, as a share of the absolute sum of all gradients of the
# channel; or, if larger, as much of the absolute sum of the enumerated units' gradients as one of
# all masks leaves by chance with about this probability.
ROUNDING, CHANCE = 3e-7, 0.01


def resolve_masks(inputs: Estimate, outputs: Estimate, bias_gradient: Tensor) -> Estimate:
    """Determine which undetermined units of a ReLU were active, channel by channel.

    The gradient of the preceding layer's bias is the sum, per channel, of the gradients at the
    ReLU's input, and these are the gradients at its output where the unit was active and 0
    elsewhere. So the active ones among the undetermined units are those whose output gradients add
    up to what is missing in the sum of the others. If a channel has too many undetermined units,
    the ones whose values are closest to the threshold of the guess are enumerated and the guess is
    kept for the others. If no mask fits, the guess is kept for all.

    Args:
        inputs: estimate of the ReLU's input, ``(samples, channels, H, W)``; an undetermined unit is
            guessed to be active where its gradient is not 0.
        outputs: estimate of the ReLU's output, of the same shape.
        bias_gradient: gradient of the preceding layer's bias, ``(channels,)``.

    Returns:
        The input; where a mask was found, its units are known or at most 0, with the gradient of
        that mask.
    """
    undetermined = ~inputs.constrained
    gradient = inputs.gradient.clone()
    guess = gradient != 0
    opened, closed = torch.zeros_like(undetermined), torch.zeros_like(undetermined)
    for channel in undetermined.any(dim=3).any(dim=2).any(dim=0).nonzero().flatten().tolist():
        places = undetermined[:, channel].nonzero(as_tuple=True)
        for most in ENUMERATED:
            values = inputs.value[:, channel][places]
            chosen = _closest_to_threshold(values, guess[:, channel][places], most)
            samples, rows, columns = (part[chosen] for part in places)
            at = samples, torch.full_like(samples, channel), rows, columns
            others = gradient[:, channel].sum() - gradient[at].sum()
            rounding = ROUNDING * outputs.gradient[:, channel].abs().sum()
            missing = bias_gradient[channel] - others
            mask = _fitting_mask(outputs.gradient[at], guess[at], missing, rounding)
            if mask is not None:
                gradient[at] = outputs.gradient[at] * mask
                # The sum fits with the guess for the units not enumerated: it is accepted as well.
                active = gradient[:, channel] != 0
                opened[:, channel] = undetermined[:, channel] & active
                closed[:, channel] = undetermined[:, channel] & ~active
                break
            if len(chosen) == len(values):
                break
    return replace(
        inputs,
        value=torch.where(closed, 0.0, inputs.value),
        error=torch.where(opened, outputs.error, inputs.error),
        is_bound=inputs.is_bound | closed,
        gradient=gradient,
    )


def _fitting_mask(parts: Tensor, guess: Tensor, total: Tensor, allowed: Tensor) -> Tensor | None:
    """The mask whose parts add up to the total; of several, the one closest to the guess."""
    masks = torch.cartesian_prod(*[torch.tensor([False, True])] * len(parts))
    masks = masks.reshape(-1, len(parts))
    allowed = torch.maximum(allowed, CHANCE / len(masks) * parts.abs().sum())
    fits = (masks.to(parts) @ parts - total).abs() <= allowed
    if not bool(fits.any()):
        return None
    changes = (masks != guess).sum(dim=1)
    best: Tensor = masks[torch.where(fits, changes, len(parts) + 1).argmin()]
    return best


def _closest_to_threshold(values: Tensor, guess: Tensor, most: int) -> Tensor:
    """Indices of the values closest to the threshold of the guess, half from each side if many."""
    order = values.argsort()
    low, high = order[~guess[order]].flip(0), order[guess[order]]
    half = most // 2
    return torch.cat([low[: most - min(len(high), half)], high[: most - min(len(low), half)]])
