"""Biases by which the rows of the gradient become an LT code of the samples."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.special import ndtri
from torch import Tensor, nn

from fedleak.errors import require
from fedleak.servers.first_layer import FirstLayerServer, deviation_of
from fedleak.updates.knowledge import Knowledge


@dataclass(kw_only=True, eq=False, repr=False)
class SolitonBiases(FirstLayerServer):
    """Lets each unit of the first layer fire for a number of samples from the soliton distribution.

    The rows of weights are random directions, in which the frequencies of images have equal
    variance; the biases are quantiles of a normal law, for which the server needs one number, the
    standard deviation of projections. The numbers of samples follow the robust soliton distribution
    (Luby, FOCS 2002), with which the samples are read one after the other.

    Args:
        c: the constant of the robust soliton distribution, above 0.
        delta: its probability of failure, between 0 and 1.
        factor: factor on the numbers of samples, above 0: more than 1 reaches samples of low
            contrast, for which few units fire.
        deviation: standard deviation of the projections of the clients' inputs, normalised, on such
            a direction. If None, that of public inputs.

    Raises:
        BadInput: if a value is out of its range.
    """

    name: ClassVar[str] = "soliton_biases"
    paper: ClassVar[str] = "Shariati & Meybodi 2026; Luby, FOCS 2002 (the distribution)"
    needs: ClassVar[str] = (
        "a linear first layer, a ReLU and classes; public inputs, or the deviation of projections"
    )

    c: float = 0.1
    delta: float = 0.5
    factor: float = 2.0
    deviation: float | None = None

    def __post_init__(self) -> None:
        require(self.c > 0, f"Expected `c` of {self.name} to be above 0, got {self.c}.")
        require(
            0 < self.delta < 1,
            f"Expected `delta` of {self.name} to be between 0 and 1, got {self.delta}.",
        )
        require(
            self.factor > 0, f"Expected `factor` of {self.name} to be above 0, got {self.factor}."
        )
        require(
            self.deviation is None or self.deviation > 0,
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
        units, samples = layer.out_features, knowledge.num_samples
        directions = whitened_directions(units, knowledge.input_shape, generator)
        projections = None if public is None else public @ directions.T
        deviation = deviation_of(projections, self.deviation, self.name)
        shares = soliton_distribution(samples, self.c, self.delta).cumsum(0)
        # Evenly spread, in random order, as the numbers of samples are then closest to the law.
        places = (torch.randperm(units, generator=generator) + 0.5) / units
        numbers = torch.searchsorted(shares, places.double()) + 1
        fires = (self.factor * (numbers - 0.5) / samples).clamp(1e-6, 1 - 1e-6)
        thresholds = torch.from_numpy(ndtri((1 - fires).numpy())) * deviation
        # The global model's own size of weights, which does not show in the model.
        scale = float(layer.weight.detach().double().norm()) / math.sqrt(units)
        return directions * scale, -thresholds.float() * scale


def soliton_distribution(samples: int, c: float, delta: float) -> Tensor:
    """The robust soliton distribution (Luby 2002, definition 11) on 1 to ``samples``.

    Args:
        samples: number of samples, at least 1.
        c: its constant, above 0.
        delta: its probability of failure, between 0 and 1.

    Returns:
        The probabilities of 1, 2, ..., ``(samples,)``, float64.
    """
    degrees = torch.arange(1, samples + 1, dtype=torch.float64)
    ideal = 1 / (degrees * (degrees - 1)).clamp_min(1)
    ideal[0] = 1 / samples
    ripple = c * math.log(samples / delta) * math.sqrt(samples)
    spike = min(max(round(samples / ripple), 1), samples)
    extra = torch.where(degrees < spike, ripple / (degrees * samples), 0.0)
    extra[spike - 1] = max(ripple * math.log(ripple / delta) / samples, 0.0)
    return (ideal + extra) / (ideal + extra).sum()


def whitened_directions(
    units: int, input_shape: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """Random directions of length 1 whose entries sum to 0.

    Of images, each frequency is multiplied by its distance from 0, since the amplitudes of natural
    images fall with it (Field 1987): so all frequencies count alike.

    Args:
        units: number of directions.
        input_shape: shape of a sample; ``(C, H, W)`` of images.
        generator: random generator.

    Returns:
        ``(units, features)``.
    """
    directions = torch.randn(units, *input_shape, generator=generator)
    if len(input_shape) == 3 and min(input_shape[1:]) > 1:
        rows, columns = (torch.fft.fftfreq(side) for side in input_shape[1:])
        distance = (rows[:, None].square() + columns.square()).sqrt()
        directions = torch.fft.ifft2(torch.fft.fft2(directions) * distance).real
    flat = directions.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return nn.functional.normalize(flat, dim=1)
