"""Slow and literal versions of what fedleak computes in clever ways."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedleak.models import inject
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import batch_loss


def dense_gradient(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    noise: Mapping[str, Tensor] | None = None,
    *,
    create_graph: bool = False,
    loss=batch_loss,
) -> Tensors:
    """The whole gradient by parameter name, built by plain autograd on a copy of the model."""
    twin = copy.deepcopy(model).requires_grad_(True)
    with inject(twin, noise or {}):
        value = loss(twin, (inputs, labels))
    names, parameters = zip(*twin.named_parameters(), strict=True)
    values = torch.autograd.grad(
        value, parameters, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return dict(zip(names, values, strict=True))


def cost_of(kind: str, dummy: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """Cosine distance or squared error of two gradients laid end to end, or the mean of each
    parameter's relative squared error."""
    if kind == "relative_error":
        errors = [
            (dummy[name] - target[name]).square().sum() / target[name].square().sum()
            for name in dummy
        ]
        return sum(errors) / len(errors)
    ours = torch.cat([dummy[name].flatten() for name in sorted(dummy)])
    theirs = torch.cat([target[name].flatten() for name in sorted(dummy)])
    if kind == "cosine":
        return 1 - torch.nn.functional.cosine_similarity(ours, theirs, dim=0, eps=0)
    return (ours - theirs).square().sum()


def match_literally(
    model: nn.Module,
    target: Tensors,
    inputs: Tensor,
    labels: Tensor,
    noise: Tensors,
    bounds: tuple[Tensor, Tensor],
    *,
    iterations: int,
) -> tuple[Tensor, Tensors, float]:
    """The papers' attack as they tell it, for one victim: IGA without noise, NRA with it.

    Cosine cost and total variation 1e-6; Adam 0.01 on the sign of the inputs' gradient and on the
    noise's gradient as it is; a tenth of the learning rate at 3/8, 5/8 and 7/8; the box after each
    step; the best iterate. Inputs and noise are the start, inputs within the box.

    Returns:
        Inputs, noise and cost.
    """
    x = inputs.clone().requires_grad_(True)
    eps = {name: value.clone().requires_grad_(True) for name, value in noise.items()}
    optimizer = torch.optim.Adam([x, *eps.values()], lr=0.01)
    milestones = [int(iterations * share / 8) for share in (3, 5, 7)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    best: tuple[Tensor, Tensors, float] = (x.detach(), {}, float("inf"))
    for iteration in range(iterations + 1):
        optimizer.zero_grad()
        cost = cost_of("cosine", dense_gradient(model, x, labels, eps, create_graph=True), target)
        if cost.item() < best[2]:
            kept = {name: value.detach().clone() for name, value in eps.items()}
            best = x.detach().clone(), kept, cost.item()
        if iteration == iterations:
            break
        steps = (x[..., 1:] - x[..., :-1]).abs().mean() + (
            x[..., 1:, :] - x[..., :-1, :]
        ).abs().mean()
        (cost + 1e-6 * steps).backward()
        x.grad.sign_()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.copy_(torch.minimum(torch.maximum(x, bounds[0]), bounds[1]))
    return best


def total_variation_of(images: Tensor) -> float:
    """Mean absolute step to the right plus mean absolute step down, pixel by pixel."""
    across: list[float] = []
    down: list[float] = []
    *_, height, width = images.shape
    for picture in images.reshape(-1, height, width).tolist():
        for row in range(height):
            for column in range(width):
                if column + 1 < width:
                    across.append(abs(picture[row][column + 1] - picture[row][column]))
                if row + 1 < height:
                    down.append(abs(picture[row + 1][column] - picture[row][column]))
    return sum(across) / max(len(across), 1) + sum(down) / max(len(down), 1)


def shared_values(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors are the same to the last bit."""
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )
