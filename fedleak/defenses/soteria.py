"""Soteria: hide the features that tell most of the input."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from fedleak.defenses.base import Defense, Outgoing, check_range
from fedleak.errors import BadInput
from fedleak.updates import Tensors

CHUNK = 64


class Soteria(Defense):
    """Zeroes the classifier's weight gradient at the features that reveal most of the input.

    For every feature r_i that enters the last linear layer, ``|r_i| / |dr_i/dx|`` says how far the
    reconstruction moves if the feature is hidden; the share ``ratio`` with the largest value is
    hidden, the quantity being summed over the batch (Sun et al., CVPR 2021, algorithm 1).

    Args:
        ratio: share of the features that is hidden, from 0 to below 1.

    Raises:
        BadInput: if the ratio is out of its range, or the model has no linear layer.
    """

    name: ClassVar[str] = "soteria"
    paper: ClassVar[str] = "Sun et al., Soteria, CVPR 2021, arXiv 2012.06043"
    needs_batch: ClassVar[bool] = True

    def __init__(self, *, ratio: float = 0.4) -> None:
        check_range(self.name, "ratio", ratio, 0 <= ratio < 1, "from 0 to below 1")
        self.ratio = ratio

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`."""
        if outgoing.batch is None:
            raise BadInput("Expected the gradient of one batch for soteria, got several steps.")
        linear = [n for n, m in outgoing.model.named_modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise BadInput("Expected a model with a linear layer for soteria, found none.")
        weight = f"{linear[-1]}.weight"
        revealing = feature_sensitivity(outgoing.model, linear[-1], outgoing.batch[0]).sum(dim=0)
        hidden = revealing.argsort(descending=True)[: int(self.ratio * len(revealing))]
        result = dict(outgoing.update)
        result[weight] = result[weight].clone()
        result[weight][:, hidden] = 0
        return result


def feature_sensitivity(model: nn.Module, layer: str, inputs: Tensor) -> Tensor:
    """``|r_i| / |dr_i/dx|`` of the features that enter a layer, sample by sample.

    Args:
        model: the model; its mode and random state are left as they were.
        layer: the layer's path.
        inputs: ``(batch, ...)``.

    Returns:
        ``(batch, features)``; 0 for features that are 0.
    """
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(
        lambda _module, arguments: seen.append(arguments[0])
    )
    training = model.training
    model.eval()

    def features(sample: Tensor) -> Tensor:
        seen.clear()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a layer's noise, if any, is the same in both directions
            model(sample[None])
        return seen[-1][0]

    try:
        rows = []
        for sample in inputs:
            values, pull, *_ = vjp(features, sample)
            parts = torch.eye(len(values), dtype=values.dtype).split(CHUNK)
            slopes = torch.cat([vmap(pull)(part)[0].flatten(1).norm(dim=1) for part in parts])
            ratio = values.abs() / slopes
            rows.append(torch.where(values == 0, torch.zeros_like(ratio), ratio).detach())
        return torch.stack(rows)
    finally:
        hook.remove()
        model.train(training)
