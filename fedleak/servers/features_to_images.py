"""Inputs with given features: a linear estimate from public samples, then a fit to the encoder."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.servers.conv_network import ConvNetwork, encode

IMAGES = 4
"""Number of dimensions of a batch of images."""
RIDGE = 1e-2
"""Ridge penalty of the linear estimate, relative to the mean variance of a feature."""
RATE = 0.04
"""Step of Adam, in units of the inputs' standard deviation."""
LEAST = 4e-3
"""Least variance in a direction, relative to the mean over all, that is assumed of inputs."""
MOST = 4000
"""Number of public samples from which the covariance of inputs is estimated, at the most."""


def linear_inputs(features: Tensor, public_features: Tensor, public: Tensor) -> Tensor:
    """Inputs as a linear function of the features, fitted to public samples by ridge regression.

    Args:
        features: ``(samples, features)``.
        public_features: ``(public, features)``.
        public: ``(public, ...)``.

    Returns:
        float32 ``(samples, ...)``.
    """
    known, wanted = public_features.double(), public.double().flatten(1)
    center, mean = known.mean(dim=0), wanted.mean(dim=0)
    known = known - center
    square = known.T @ known
    square.diagonal().add_(RIDGE * square.diagonal().mean().clamp(min=1e-12))
    weights = torch.linalg.solve(square, known.T @ (wanted - mean))
    found = (features.double() - center) @ weights + mean
    images: Tensor = found.reshape(-1, *public.shape[1:]).float()
    return images


@dataclass(frozen=True)
class Likely:
    """A normal law of inputs, estimated from public samples.

    Args:
        mean: ``(entries,)``.
        directions: main directions of the covariance, ``(entries, directions)``, orthonormal.
        variances: variance along each, ``(directions,)``.
        least: variance in every other direction, and at least in these.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    least: float

    @classmethod
    def of(cls, public: Tensor) -> Self:
        """The law of public samples; images are mirrored too.

        Args:
            public: ``(public, ...)``.
        """
        public = public[:MOST]
        if public.dim() == IMAGES:
            public = torch.cat([public, public.flip(-1)])
        rows = public.float().flatten(1)
        mean = rows.mean(dim=0)
        rows = rows - mean
        number, entries = rows.shape
        # Of the two products the smaller has all directions in which samples differ.
        if number < entries:
            variances, weights = torch.linalg.eigh(rows @ rows.T / number)
            kept = variances > variances[-1] * 1e-6
            directions = rows.T @ weights[:, kept] / (number * variances[kept]).sqrt()
            variances = variances[kept]
        else:
            variances, directions = torch.linalg.eigh(rows.T @ rows / number)
        least = LEAST * float(rows.square().mean())
        return cls(mean, directions, variances.clamp(min=0), max(least, 1e-12))

    def surprise(self, inputs: Tensor) -> Tensor:
        """Mean squared deviation of inputs in units of their variance, ``(samples,)``.

        Args:
            inputs: ``(samples, ...)``.
        """
        rows = inputs.flatten(1) - self.mean.to(inputs)
        along = rows @ self.directions.to(inputs)
        rest = rows.square().sum(dim=1) - along.square().sum(dim=1)
        variances = self.variances.to(inputs) + self.least
        return ((along.square() / variances).sum(dim=1) + rest / self.least) / rows.shape[1]


def fitted_inputs(
    model: nn.Module,
    network: ConvNetwork,
    features: Tensor,
    start: Tensor,
    *,
    bounds: tuple[Tensor, Tensor],
    spread: Tensor,
    likely: Likely,
    likeliness: float,
    smoothness: float,
    steps: int,
) -> Tensor:
    """Likely inputs whose features are the given ones, with little total variation, by Adam.

    Args:
        model: the model with the weights that were sent.
        network: its parts.
        features: ``(samples, features)``.
        start: where the search starts, ``(samples, ...)``.
        bounds: lowest and highest valid input, which broadcast with an input.
        spread: standard deviation of each feature, ``(features,)``.
        likely: the law of inputs.
        likeliness: weight of the deviation from it, beside the mean squared error of the features
            in units of ``spread``.
        smoothness: weight of the total variation, beside the same; of inputs
            ``(samples, C, H, W)`` alone.
        steps: number of steps.

    Returns:
        Inputs within the bounds, of the shape of ``start``.
    """
    if not steps or not len(start):
        return start.clamp(*bounds)
    like = next(model.parameters())
    low, high = (limit.to(like) for limit in bounds)
    wanted, unit = features.to(like), spread.clamp(min=1e-6).to(like)
    inputs = start.to(like).clamp(low, high).requires_grad_()
    optimizer = torch.optim.Adam([inputs], lr=RATE * float(start.std()))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        error = ((encode(model, network, inputs) - wanted) / unit).square().mean(dim=1)
        penalty = likeliness * likely.surprise(inputs) + smoothness * total_variation(inputs)
        loss = (error + penalty).sum()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            inputs.clamp_(low, high)
    return inputs.detach().cpu()


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute step between neighbouring pixels of each image, ``(samples,)``.

    Args:
        images: ``(samples, C, H, W)``; of inputs of another shape it is 0.
    """
    if images.dim() != IMAGES:
        return images.new_zeros(len(images))
    across = functional.l1_loss(images[..., 1:], images[..., :-1], reduction="none")
    down = functional.l1_loss(images[..., 1:, :], images[..., :-1, :], reduction="none")
    return across.flatten(1).mean(dim=1) + down.flatten(1).mean(dim=1)
