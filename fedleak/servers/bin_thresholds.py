"""The bins into which a server divides a client's samples: thresholds of a feature."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fedleak.errors import require
from fedleak.updates.files import Tensors

NEAR = 8
"""The share of the public samples that each threshold is fitted to is one in this number."""
FEWEST = 30
"""Fewest public samples from which thresholds are estimated."""


@dataclass(frozen=True)
class Division:
    """Thresholds of a feature, or of the ratio of two features.

    Where weight decay shrinks all features alike during the training, their ratio stays.

    Args:
        feature: number of the feature.
        reference: number of the feature by which it is divided. If None, it is not.
        thresholds: ascending, float64 ``(units,)``.
    """

    feature: int
    reference: int | None
    thresholds: Tensor

    @property
    def columns(self) -> list[int]:
        """Numbers of the features that the model uses."""
        return [self.feature] if self.reference is None else [self.feature, self.reference]

    @property
    def middles(self) -> Tensor:
        """The middle of each bin, ``(units - 1,)``."""
        return (self.thresholds[1:] + self.thresholds[:-1]) / 2

    def of(self, features: Tensor) -> Tensor:
        """What is compared with the thresholds.

        Args:
            features: ``(samples, features)``, at least 0 if there is a reference.

        Returns:
            float64 ``(samples,)``; infinite where the reference is 0 and the feature is not.
        """
        values = features[:, self.feature].double()
        if self.reference is None:
            return values
        return values.div(features[:, self.reference]).nan_to_num(nan=0.0, posinf=torch.inf)

    def to_memory(self) -> Tensors:
        """The division as tensors."""
        reference = -1 if self.reference is None else self.reference
        return {
            "feature": torch.tensor(self.feature),
            "reference": torch.tensor(reference),
            "thresholds": self.thresholds,
        }

    @classmethod
    def from_memory(cls, memory: Tensors) -> Self:
        """The division that :meth:`to_memory` gave."""
        reference = int(memory["reference"])
        return cls(
            int(memory["feature"]), None if reference < 0 else reference, memory["thresholds"]
        )


def bin_thresholds(values: Tensor, count: int, samples: int, above: float) -> Tensor:
    """Thresholds between which one of a client's samples lies on average.

    Threshold ``j`` is the estimated quantile at ``1 - above - (count - 1 - j) / samples``. The
    quantile function is a local quadratic fit to the public values in ``u = -log(1 - p)``, in which
    an exponential tail is a straight line; it varies less than the order statistics themselves.

    Args:
        values: what is divided, of public samples, ``(public,)``; infinite values are above all.
        count: number of thresholds.
        samples: number of the client's samples.
        above: share of the samples above the last threshold, from 0 to below 1. A share of at
            least half a sample is taken.

    Returns:
        Thresholds in ascending order, float64 ``(count,)``.

    Raises:
        BadInput: if there are fewer than :data:`FEWEST` public values.
    """
    finite = int(values.isfinite().sum())
    require(
        finite >= FEWEST,
        f"Expected at least {FEWEST} public samples to estimate thresholds from, got {finite}.",
    )
    shares = tail_shares(count, samples, above)
    ordered = values.double().sort().values
    public = len(ordered)
    ranks = torch.arange(public, dtype=torch.float64)
    places = -torch.log1p(-(ranks + 0.5) / public)
    wanted = -shares.log()
    near = max(FEWEST, public // NEAR)
    distance = (wanted[:, None] - places).abs()
    # Infinite values are no samples of the quantile function.
    distance = torch.where(ordered.isfinite(), distance, torch.inf)
    nearest = distance.topk(near, dim=1, largest=False)
    reach = nearest.values.max(dim=1, keepdim=True).values * 1.0001 + 1e-12
    kernel = (1 - (nearest.values / reach) ** 3) ** 3
    offset = (places[nearest.indices] - wanted[:, None]) / reach
    # The value of the fit at an offset of 0 is its constant.
    design = torch.stack([torch.ones_like(offset), offset, offset**2], dim=2)
    root = kernel.sqrt()[:, :, None]
    target = ordered[nearest.indices][:, :, None]
    fit = torch.linalg.lstsq(design * root, target * root).solution[:, 0, 0]
    thresholds: Tensor = fit.sort().values
    return thresholds


def tail_shares(count: int, samples: int, above: float) -> Tensor:
    """Share of a client's samples above each threshold, float64 ``(count,)``, descending.

    Args:
        count: number of thresholds.
        samples: number of the client's samples.
        above: share above the last threshold; at least half a sample is taken.

    Raises:
        BadInput: if the client has too few samples for so many thresholds.
    """
    least = max(above, 0.5 / samples)
    first = least + (count - 1) / samples
    require(
        first < 1 - 0.5 / samples,
        f"Expected more than {math.ceil((count - 0.5) / (1 - above))} samples of a client for "
        f"{count} bins of one sample each, {above:.3g} of the samples above them, got {samples}.",
    )
    return least + torch.arange(count - 1, -1, -1, dtype=torch.float64) / samples
