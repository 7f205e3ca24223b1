"""The published attacks as one plain autograd loop, with which benchmarks and tests compare.

One update at a time, the whole dummy gradient built by automatic differentiation, cosine distance,
total variation, signed Adam, box: Geiping et al., NeurIPS 2020, with the PRECODE paper's settings.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fedleak.models.noise import inject
from fedleak.updates.knowledge import batch_loss


def dummy_gradient(
    model: nn.Module, inputs: Tensor, labels: Tensor, noise: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    """The gradient of every parameter, differentiable in inputs and noise."""
    with inject(model, noise):
        loss = batch_loss(model, (inputs, labels))
    return torch.autograd.grad(loss, tuple(model.parameters()), create_graph=True)


def cosine_distance(dummy: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
    """``1 - cos`` of the angle between two gradients."""
    inner = sum((a * b).sum() for a, b in zip(dummy, target, strict=True))
    norms = [sum(value.square().sum() for value in values) for values in (dummy, target)]
    distance: Tensor = 1 - inner / (norms[0].sqrt() * norms[1].sqrt())  # type: ignore[union-attr]
    return distance


def relative_error(dummy: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
    """The mean over the parameters of squared distance over the target's squared norm."""
    errors = [(a - b).square().sum() / b.square().sum() for a, b in zip(dummy, target, strict=True)]
    return torch.stack(errors).mean()


def attack(
    model: nn.Module,
    target: tuple[Tensor, ...],
    labels: Tensor,
    start: Tensor,
    bounds: tuple[Tensor, Tensor],
    *,
    iterations: int,
    noise: Mapping[str, Tensor] | None = None,
    learning_rate: float = 0.01,
    total_variation: float = 1e-6,
    cost: Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], Tensor] = cosine_distance,
) -> Tensor:
    """Reconstruct one update's inputs; with noise, that is restored too (NRA).

    Args:
        model: the model with the weights that were sent.
        target: the client's gradient, in the order of the parameters.
        labels: its labels ``(batch,)``.
        start: where the inputs start, ``(batch, C, H, W)`` or, without total variation, any shape.
        bounds: lowest and highest valid input.
        iterations: number of steps; the learning rate falls at 3/8, 5/8, 7/8 of them.
        noise: slot -> where the noise starts ``(batch, K)``.
        learning_rate: Adam's.
        total_variation: its weight.
        cost: the distance of the two gradients.

    Returns:
        The inputs after the last iteration, of the shape of ``start``.
    """
    inputs = start.clone().requires_grad_(True)
    slots = {name: value.clone().requires_grad_(True) for name, value in (noise or {}).items()}
    optimizer = torch.optim.Adam([inputs, *slots.values()], lr=learning_rate)
    falls = [int(iterations * share) for share in (3 / 8, 5 / 8, 7 / 8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, gamma=0.1)
    for _ in range(iterations):
        optimizer.zero_grad()
        objective = cost(dummy_gradient(model, inputs, labels, slots), target)
        if total_variation:
            across, down = inputs.diff(dim=-1).abs().mean(), inputs.diff(dim=-2).abs().mean()
            objective = objective + total_variation * (across + down)
        objective.backward()
        assert inputs.grad is not None
        inputs.grad.sign_()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            inputs.clamp_(*bounds)
    return inputs.detach()
