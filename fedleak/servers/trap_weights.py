"""Rows of weights that let each unit fire for few samples."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedleak.errors import BadInput, require
from fedleak.servers.first_layer import FirstLayerServer
from fedleak.updates.knowledge import Knowledge


@dataclass(kw_only=True, eq=False, repr=False)
class TrapWeights(FirstLayerServer):
    """Trap weights: in each row the negative half of the entries outweighs the positive one.

    Half of a row's entries, chosen at random, are negative normal numbers; the other half are their
    opposites times a factor below 1 (Boenisch et al. 2023, section 5.2). Of inputs that are not
    negative, few then exceed 0.

    Args:
        scaling: the factor, between 0 and 1. If None, it is chosen on public inputs.
        fires: number of samples for which a unit then fires on average, above 0. The paper aims at
            1; more is better where samples are subtracted once they are read.
        deviation: standard deviation of the entries, above 0.

    Raises:
        BadInput: if a value is out of its range.
    """

    name: ClassVar[str] = "trap_weights"
    paper: ClassVar[str] = "Boenisch et al., EuroS&P 2023, arXiv 2112.02918, section 5.2"
    needs: ClassVar[str] = (
        "a linear first layer, a ReLU and classes; images, and public ones or the scaling"
    )

    scaling: float | None = None
    fires: float = 4.0
    deviation: float = 0.02

    def __post_init__(self) -> None:
        require(
            self.scaling is None or 0 < self.scaling < 1,
            f"Expected `scaling` of {self.name} to be between 0 and 1, got {self.scaling}.",
        )
        require(self.fires > 0, f"Expected `fires` of {self.name} to be above 0, got {self.fires}.")
        require(
            self.deviation > 0,
            f"Expected `deviation` of {self.name} to be above 0, got {self.deviation}.",
        )

    def rows(
        self,
        layer: nn.Linear,
        knowledge: Knowledge,
        public: Tensor | None,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`FirstLayerServer.rows`."""
        mean, std = pixel_scale(knowledge)
        units, features = layer.weight.shape
        half = features // 2
        sizes = torch.randn(units, half, generator=generator).abs() * self.deviation
        places = torch.rand(units, features, generator=generator).argsort(1)
        negative = torch.zeros(units, features).scatter(1, places[:, :half], sizes)
        positive = torch.zeros(units, features).scatter(1, places[:, half : 2 * half], sizes)
        scaling = self.scaling
        if scaling is None:
            if public is None:
                raise BadInput(f"Expected public inputs or `scaling` for {self.name}, got neither.")
            pixels = public * std + mean
            # A unit fires where the scaling exceeds this ratio.
            ratio = (pixels @ negative.T) / (pixels @ positive.T).clamp_min(1e-6)
            share = int(ratio.numel() * self.fires / knowledge.num_samples)
            chosen = min(max(share, 1), ratio.numel())
            scaling = float(ratio.flatten().kthvalue(chosen).values)
        weight = scaling * positive - negative
        return weight * std, weight @ mean


def pixel_scale(knowledge: Knowledge) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation with which each input is normalised, flattened.

    Args:
        knowledge: has the means and standard deviations of the channels.
    """
    places = (-1,) + (1,) * (len(knowledge.input_shape) - 1)
    mean, std = (
        torch.tensor(values).reshape(places).expand(knowledge.input_shape).flatten()
        for values in (knowledge.mean, knowledge.std)
    )
    return mean, std
