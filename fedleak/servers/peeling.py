"""Samples from the rows of a linear layer's gradient, one after the other."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 2e-3
"""Largest relative difference of a row's bias gradient from that of the sample found in it."""
FINEST = 1e-5
"""Relative difference that is allowed in any case."""
OUTSIDE = 0.02
"""Share of the value range by which a sample may be outside of it."""
EXPLAINED = 0.01
"""Share of a sample's part of a row up to which the row's rest counts as nothing."""
CHUNK = 128

Signals = Callable[[Tensor], Tensor]
"""Inputs ``(samples, features)`` -> the part of each sample, with each label, of the rows' bias
gradient, ``(samples, labels, rows)``."""


@dataclass(frozen=True, repr=False)
class Peeled:
    """Samples that were found in the rows of a gradient.

    Args:
        inputs: ``(found, features)``, float64.
        labels: ``(found,)``.
        errors: relative difference of the bias gradient of the row in which each was found from
            the sample's own, ``(found,)``.
        certified: whether a row in which no sample was found is explained by samples that were
            found, this one among them, ``(found,)``.
    """

    inputs: Tensor
    labels: Tensor
    errors: Tensor
    certified: Tensor


def peel(
    weight: Tensor,
    bias: Tensor,
    signals: Signals,
    *,
    samples: int,
    limits: tuple[Tensor, Tensor],
    error: Tensor,
) -> Peeled:
    """Find samples that are alone in a row, subtract all that is theirs, and repeat.

    Where a row holds one sample, the gradient of its weights over that of its bias is the sample.
    Whether it does is checked by computing the gradient of the sample found, for each label: it
    must be that of the row. Then its part of all rows is subtracted, as in the decoding of LT codes
    (Luby, FOCS 2002), after which other samples are alone.

    Args:
        weight: gradient of the weights, ``(rows, features)``.
        bias: gradient of the biases, ``(rows,)``.
        signals: a sample's part of ``bias``, of each label.
        samples: most samples that there are.
        limits: lowest and highest value of a sample, each ``(features,)``.
        error: rounding error of ``bias``, ``(rows,)``.
    """
    state = _Rows(weight.double().clone(), bias.double().clone(), error.double().clone())
    low, high = (limit.double() for limit in limits)
    slack = OUTSIDE * (high - low)
    found: list[tuple[Tensor, int, float, Tensor]] = []
    while len(found) < samples:
        rows = state.candidates()
        inputs = state.weight[rows] / state.bias[rows, None]
        inside = ((inputs >= low - slack) & (inputs <= high + slack)).all(1)
        accepted = _single(state, rows[inside], inputs[inside], signals)
        before = len(found)
        for difference, row, sample, label, part in sorted(accepted, key=lambda item: item[0]):
            # A row that another sample of this pass was in holds something else by now.
            if not state.changed[row] and len(found) < samples:
                state.subtract(sample, part, row, difference)
                found.append((sample, label, difference, part))
        if len(found) == before:
            break
    if not found:
        nothing = weight.new_zeros(0)
        return Peeled(
            weight.new_zeros(0, weight.shape[1]).double(), nothing.long(), nothing.double(),
            nothing.bool(),
        )  # fmt: skip
    samples_found, labels, differences, parts = zip(*found, strict=True)
    inputs, own = torch.stack(samples_found), torch.stack(parts)
    size = own.abs() * inputs.norm(dim=1)[:, None]
    explained = (own != 0) & (state.weight.norm(dim=1) <= EXPLAINED * size) & ~state.used
    return Peeled(inputs, torch.tensor(labels), torch.tensor(differences), explained.any(1))


@dataclass
class _Rows:
    """What is left of the rows, and which of them changed since they were last looked at."""

    weight: Tensor
    bias: Tensor
    error: Tensor

    def __post_init__(self) -> None:
        self.changed = torch.ones(len(self.bias), dtype=torch.bool)
        self.used = torch.zeros_like(self.changed)

    def tolerance(self, rows: Tensor) -> Tensor:
        """The relative difference that rounding may cause in rows."""
        return (8 * self.error[rows] / self.bias[rows].abs()).clamp_min(FINEST)

    def candidates(self) -> Tensor:
        """The rows to look at, of which more than rounding is left."""
        rows = (self.changed & ~self.used & (self.bias != 0)).nonzero().flatten()
        self.changed[:] = False
        return rows[self.tolerance(rows) <= TOLERANCE]

    def subtract(self, sample: Tensor, part: Tensor, row: int, difference: float) -> None:
        """Subtract a sample's part of all rows."""
        touched = (part != 0).nonzero().flatten()
        self.weight[touched] -= part[touched, None] * sample
        self.bias[touched] -= part[touched]
        self.error[touched] += part[touched].abs() * max(difference, 1e-7)
        self.changed[touched] = True
        self.used[row] = True


def _single(
    state: _Rows, rows: Tensor, inputs: Tensor, signals: Signals
) -> list[tuple[float, int, Tensor, int, Tensor]]:
    """Of the rows that hold one sample: relative difference, row, sample, label, part of rows."""
    found = []
    for chosen, samples in zip(rows.split(CHUNK), inputs.split(CHUNK), strict=True):
        parts = signals(samples)
        own = parts[torch.arange(len(chosen)), :, chosen]
        differences, labels = (own / state.bias[chosen, None] - 1).abs().min(1)
        for at in (differences <= state.tolerance(chosen)).nonzero().flatten().tolist():
            label = int(labels[at])
            item = (float(differences[at]), int(chosen[at]), samples[at], label, parts[at, label])
            found.append(item)
    return found
