"""Whether a sample is in a batch: independent equations that its part of the gradient satisfies."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedleak.attacks.exact_batches.factorisation import Factors

# Equations beyond the unknowns that a certificate rests on, at least.
LEAST_SPARE = 4


@dataclass(frozen=True)
class Tolerances:
    """Relative errors up to which an equation holds.

    Args:
        columns: of a signal's part outside the columns' span.
        rows: of an input's part outside the rows' span.
        pairing: of the pairing, which is 1.
        amplitude: of a signal's entry, or of the whole signal.
    """

    columns: float
    rows: float
    pairing: float
    amplitude: float

    @classmethod
    def of(cls, unit: float, *, rounded: bool) -> "Tolerances":
        """The tolerances for a client's arithmetic.

        A sample whose pixels were rounded to their levels has no error of its own and passes none
        on, so that its equations may hold less exactly; a sample that was not has to agree closely.

        Args:
            unit: unit roundoff.
            rounded: whether the sample's pixels were rounded to levels.
        """
        narrow = unit > torch.finfo(torch.float64).eps
        if rounded:
            size = 1e-2 if narrow else 1e-4
            return cls(size, size, size, size)
        return cls(3e-4, 3e-4, 1e-3, 1e-4) if narrow else cls(1e-6, 1e-6, 1e-6, 1e-6)


@dataclass(frozen=True)
class Agreement:
    """How well samples agree with what is left of a gradient.

    Args:
        columns: share of each signal outside the columns' span, ``(samples,)``.
        rows: share of each input outside the rows' span, ``(samples,)``.
        pairing: distance of the pairing from 1, ``(samples,)``: at 1, subtracting the sample lowers
            the rank by one (Wedderburn's rank reduction).
        spare: smaller number of equations beyond the unknowns, of the columns and the rows.
    """

    columns: Tensor
    rows: Tensor
    pairing: Tensor
    spare: int

    def holds(self, tolerances: Tolerances) -> Tensor:
        """Whether the equations hold, ``(samples,)``.

        Args:
            tolerances: see there.
        """
        good = self.columns <= tolerances.columns
        good &= (self.rows <= tolerances.rows) & (self.pairing <= tolerances.pairing)
        return good & (self.spare >= LEAST_SPARE)


def agreement(factors: Factors, signals: Tensor, inputs: Tensor) -> Agreement:
    """How well samples agree with what is left of a layer's gradient.

    Args:
        factors: of what is left.
        signals: the samples' signals in the layer, ``(samples, out)``.
        inputs: their inputs of it, with the 1 for the bias, ``(samples, in + 1)``.
    """
    signals = signals * factors.weights
    along = signals @ factors.columns
    across = inputs @ factors.rows.T
    columns = (signals - along @ factors.columns.T).norm(dim=1) / signals.norm(dim=1)
    rows = (inputs - across @ factors.rows).norm(dim=1) / inputs.norm(dim=1)
    pairing = (along * across / factors.sizes).sum(dim=1)
    active = int((factors.weights > 0).sum())
    spare = min(active, inputs.shape[1]) - factors.rank
    return Agreement(
        columns.nan_to_num(torch.inf), rows.nan_to_num(torch.inf), (pairing - 1).abs(), spare
    )
