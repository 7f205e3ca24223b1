"""Bins on the brightness of inputs: neighbouring units differ in the samples of one bin."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor, nn

from fedleak.errors import require
from fedleak.servers.first_layer import FirstLayerServer, deviation_of
from fedleak.updates.knowledge import Knowledge

KNOTS = 33
"""Quantiles of public inputs between which thresholds are interpolated."""


@dataclass(kw_only=True, eq=False, repr=False)
class Imprint(FirstLayerServer):
    """Bins on the mean of the inputs in a perceptron's own first layer.

    All units measure the mean of a sample's normalised values, and compare it with thresholds at
    which equal shares of the samples are expected (Fowl et al. 2022, section 4). The next layer
    weights all units alike, so that the gradients of two neighbouring rows differ by the samples
    between their thresholds.

    Args:
        deviation: standard deviation of the mean of an input, normalised, for thresholds at
            quantiles of a normal law around 0. If None, the thresholds are quantiles of public
            inputs.
        size: standard deviation of the next layer's weights, above 0.

    Raises:
        BadInput: if a value is out of its range.
    """

    name: ClassVar[str] = "imprint"
    paper: ClassVar[str] = "Fowl et al., ICLR 2022, arXiv 2110.13057, section 4"
    needs: ClassVar[str] = (
        "a linear first layer, a ReLU and classes; public inputs, or the deviation of the mean"
    )
    differences: ClassVar[bool] = True

    deviation: float | None = None
    size: float = 0.003

    def __post_init__(self) -> None:
        require(
            self.deviation is None or self.deviation > 0,
            f"Expected `deviation` of {self.name} to be above 0, got {self.deviation}.",
        )
        require(self.size > 0, f"Expected `size` of {self.name} to be above 0, got {self.size}.")

    def rows(
        self,
        layer: nn.Linear,
        knowledge: Knowledge,
        public: Tensor | None,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`FirstLayerServer.rows`."""
        units, features = layer.weight.shape
        shares = torch.arange(1, units + 1, dtype=torch.float64) / (units + 1)
        if self.deviation is None and public is not None:
            # Between few quantiles, since those of single public inputs are further from the truth.
            knots = torch.linspace(0, 1, KNOTS, dtype=torch.float64)
            values = torch.quantile(public.double().mean(1), knots)
            thresholds = torch.from_numpy(np.interp(shares, knots, values))
        else:
            deviation = deviation_of(None, self.deviation, self.name)
            thresholds = torch.from_numpy(ndtri(shares.numpy())) * deviation
        return torch.full((units, features), 1 / features), -thresholds.float()

    def following(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """See :meth:`FirstLayerServer.following`: equal columns."""
        column = torch.randn(len(weight), 1, generator=generator) * self.size
        return column.expand_as(weight).clone()
