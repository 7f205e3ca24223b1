"""Estimate of a layer's input or output: values, standard errors, upper bounds and gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

# An entry counts as known if its standard error is at most this share of the values' root mean
# square.
MAX_RELATIVE_ERROR = 0.05


@dataclass(frozen=True)
class Estimate:
    """Estimate of a tensor between two layers. All tensors are ``(samples, ...)``; floats float64.

    Args:
        value: the estimated values; where ``is_bound``, an upper bound of the true value.
        error: standard errors of the values; infinite where the value is unknown.
        is_bound: True where the value is only an upper bound, as at the input of an inactive ReLU.
        gradient: gradient of the loss with respect to the tensor.
    """

    value: Tensor
    error: Tensor
    is_bound: Tensor
    gradient: Tensor

    @property
    def known(self) -> Tensor:
        """True where the standard error is small."""
        return self.error <= MAX_RELATIVE_ERROR * self.rms

    @property
    def exact(self) -> Tensor:
        """True where the value is known and not only an upper bound."""
        return self.known & ~self.is_bound

    @property
    def constrained(self) -> Tensor:
        """True where the value is known or has an upper bound."""
        return self.known | self.is_bound

    @property
    def rms(self) -> Tensor:
        """Root mean square of the values, at least the smallest normal number."""
        return self.value.square().mean().sqrt().clamp_min(torch.finfo(self.value.dtype).tiny)

    def weights(self, floor: float = 0.0) -> Tensor:
        """Weights of the entries in a least squares fit, from 0 (not exact) to 1.

        A weight is inverse to the standard error. Errors below the median of the exact entries
        count as the median: they are estimates themselves, and one that happens to be small does
        not justify a larger weight.

        Args:
            floor: errors below this share of the values' root mean square count as that share.
        """
        exact = self.exact
        errors = self.error[exact]
        least = max(float(errors.median()), floor * float(self.rms)) if errors.numel() else 0.0
        weights = (least / self.error.clamp_min(least)).nan_to_num(1.0)
        return torch.where(exact, weights, 0.0)

    def reshape(self, shape: torch.Size) -> "Estimate":
        """The same estimate in another shape with as many entries."""
        return Estimate(
            self.value.reshape(shape), self.error.reshape(shape), self.is_bound.reshape(shape),
            self.gradient.reshape(shape),
        )  # fmt: skip
