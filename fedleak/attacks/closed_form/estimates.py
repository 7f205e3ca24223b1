"""What is known of a tensor between two layers."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Entries with an error above this share of the values' root mean square are not known.
UNKNOWN = 0.05


@dataclass(frozen=True)
class Signal:
    """What is known of a tensor between two layers, ``(samples, ...)`` throughout, float64.

    Args:
        value: the values, as good as they are known.
        error: their standard errors; infinite where nothing is known.
        at_most: where the value is but an upper bound.
        gradient: the loss's gradient in the tensor.
    """

    value: Tensor
    error: Tensor
    at_most: Tensor
    gradient: Tensor

    @property
    def known(self) -> Tensor:
        """Where the values are known."""
        return self.error <= UNKNOWN * self.scale

    @property
    def exact(self) -> Tensor:
        """Where the values are known and no mere bounds."""
        return self.known & ~self.at_most

    def trust(self, alike: float = 0.0) -> Tensor:
        """How much an entry counts where values are fitted, from 0 (not exact) to 1.

        As the inverse of its error; below the median, errors count as alike, since an estimate that
        happens to be small has no more weight.

        Args:
            alike: so do errors below this share of the values' root mean square.
        """
        exact = self.exact
        errors = self.error[exact]
        floor = max(float(errors.median()), alike * float(self.scale)) if errors.numel() else 0.0
        trust = (floor / self.error.clamp_min(floor)).nan_to_num(1.0)
        return torch.where(exact, trust, 0.0)

    @property
    def scale(self) -> Tensor:
        """The root mean square of the values; not 0."""
        return self.value.square().mean().sqrt().clamp_min(torch.finfo(self.value.dtype).tiny)

    def shaped(self, shape: torch.Size) -> "Signal":
        """The same in another shape."""
        return Signal(
            self.value.reshape(shape), self.error.reshape(shape), self.at_most.reshape(shape),
            self.gradient.reshape(shape),
        )  # fmt: skip
