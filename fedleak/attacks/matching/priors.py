"""Priors of images: total variation and batch-norm statistics."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedleak.attacks.base import Problem

# By batch-norm layer: mean and unbiased variance ``(channels,)`` of its input.
Statistics = dict[str, tuple[Tensor, Tensor]]


def total_variation(images: Tensor) -> Tensor:
    """Anisotropic total variation: mean absolute difference of neighbours in rows plus columns.

    Args:
        images: ``(..., H, W)``, any number of channels; a side of length 1 contributes nothing.

    Returns:
        A scalar, at least 0.
    """
    across = images.diff(dim=-1).abs()
    down = images.diff(dim=-2).abs()
    return across.sum() / max(across.numel(), 1) + down.sum() / max(down.numel(), 1)


def batch_norm_distance(
    statistics: Mapping[str, tuple[Tensor, Tensor]], target: Mapping[str, tuple[Tensor, Tensor]]
) -> Tensor:
    """Distance of a dummy batch's statistics from the expected ones (GradInversion, eq. 10).

    Args:
        statistics: statistics of the dummy batch: mean and variance ``(channels,)`` by batch-norm
            layer.
        target: the expected ones, for some or all of these layers.

    Returns:
        A scalar: the Euclidean distances of means and of variances, summed over the layers.
    """
    total = []
    for name, expected in target.items():
        for value, wanted in zip(statistics[name], expected, strict=True):
            # The root's derivative at 0 is infinite, which the smallest positive number avoids.
            squares = (value - wanted).square().sum()
            total.append((squares + torch.finfo(squares.dtype).tiny).sqrt())
    return torch.stack(total).sum()


def has_statistics(model: nn.Module) -> bool:
    """Whether a model has a batch-norm layer that keeps running statistics."""
    return any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in model.modules())


def expected_statistics(problem: Problem, model: nn.Module) -> Statistics:
    """Mean and variance of each batch-norm layer's input, as the server expects them.

    GradInversion (Yin et al., CVPR 2021, https://arxiv.org/abs/2104.07586, section 3.2) expects the
    model's running statistics. A client in train mode that returns its buffers reveals more: one
    step has moved them by ``momentum`` towards the batch's own statistics, which follow exactly.
    After several steps the returned statistics are used as they are.

    Args:
        problem: the update; ``problem.buffers`` holds the buffers that the client returned.
        model: the model with the running statistics that the server sent.

    Returns:
        Mean and unbiased variance ``(channels,)`` by layer, detached.
    """
    knowledge, found = problem.knowledge, problem.buffers
    exact = knowledge.training and knowledge.steps == 1
    result: Statistics = {}
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or module.running_mean is None:
            continue
        assert module.running_var is not None
        sent = (module.running_mean, module.running_var)
        names = (f"{name}.running_mean", f"{name}.running_var")
        values = tuple(
            found[n].to(s) if n in found else s for n, s in zip(names, sent, strict=True)
        )
        if exact and all(n in found for n in names) and module.momentum:
            m = module.momentum
            mean, variance = ((v - (1 - m) * s) / m for v, s in zip(values, sent, strict=True))
            values = (mean, variance.clamp_min(0))
        result[name] = (values[0].detach().clone(), values[1].detach().clone())
    return result
