"""Inputs with given features: a linear estimate from public samples, then a fit to the encoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.servers.conv_network import ConvNetwork, encode

RIDGE = 1e-2
"""Ridge penalty of the linear estimate, relative to the mean variance of a feature."""
RATE = 0.02
"""Step of Adam, in units of the inputs' standard deviation."""


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


def fitted_inputs(
    model: nn.Module,
    network: ConvNetwork,
    features: Tensor,
    start: Tensor,
    *,
    bounds: tuple[Tensor, Tensor],
    spread: Tensor,
    smoothness: float,
    steps: int,
) -> Tensor:
    """Inputs whose features are the given ones, with little total variation, by Adam.

    Args:
        model: the model with the weights that were sent.
        network: its parts.
        features: ``(samples, features)``.
        start: where the search starts, ``(samples, ...)``.
        bounds: lowest and highest valid input, which broadcast with an input.
        spread: standard deviation of each feature, ``(features,)``.
        smoothness: weight of the total variation, beside the mean squared error of the features in
            units of ``spread``. It is taken of inputs ``(samples, C, H, W)`` alone.
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
        loss = error.sum() + smoothness * total_variation(inputs).sum()
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
    if images.dim() != 4:
        return images.new_zeros(len(images))
    across = functional.l1_loss(images[..., 1:], images[..., :-1], reduction="none")
    down = functional.l1_loss(images[..., 1:, :], images[..., :-1, :], reduction="none")
    return across.flatten(1).mean(dim=1) + down.flatten(1).mean(dim=1)
