"""Batch-norm statistics that the server expects of a client's batch."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedleak.attacks.base import Problem
from fedleak.attacks.priors import Statistics


def has_statistics(model: nn.Module) -> bool:
    """Whether a model has a batch-norm layer that keeps running statistics."""
    return any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in model.modules())


def expected_statistics(problem: Problem, model: nn.Module) -> Statistics:
    """Mean and variance that entered each batch-norm layer, as the server expects them.

    GradInversion (Yin et al., CVPR 2021, https://arxiv.org/abs/2104.07586, section 3.2) expects the
    model's running statistics. A client in train mode that returns its buffers tells more: after
    one step they have moved by ``momentum`` towards the batch's own statistics, which follow
    exactly. After several steps what it returned is taken as it is.

    Args:
        problem: the update; ``problem.buffers`` holds what the client returned besides parameters.
        model: the architecture with the running statistics that the server sent.

    Returns:
        Mean and unbiased variance ``(channels,)`` by layer, detached.
    """
    knowledge, found = problem.knowledge, problem.buffers
    exact = knowledge.training and knowledge.local_steps == 1
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
