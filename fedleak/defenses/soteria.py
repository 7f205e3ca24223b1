"""Soteria: perturb the representation where it reveals most of the input."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from fedleak.defenses.base import Defense, Family, Outgoing, check_range
from fedleak.errors import BadInput
from fedleak.models.module_inputs import module_input
from fedleak.models.noise import inject
from fedleak.updates.entries import Entries, SentUpdate
from fedleak.updates.files import Tensors
from fedleak.updates.naming import joined

CHUNK = 64


@dataclass(kw_only=True, eq=False, repr=False)
class Soteria(Defense):
    """Zeroes the classifier's weight gradient at the features that reveal most of the input.

    For every feature r_i that enters the last linear layer, ``|r_i| / |dr_i/dx|``, summed over the
    batch, measures how much the reconstruction changes if the feature is hidden; the share
    ``ratio`` with the largest values is hidden (Sun et al., CVPR 2021, algorithm 1).

    Args:
        ratio: share of the features that is hidden, from 0 to below 1.

    Raises:
        BadInput: if the ratio is out of its range, or the model has no linear layer.
    """

    name: ClassVar[str] = "soteria"
    paper: ClassVar[str] = "Sun et al., Soteria, CVPR 2021, arXiv 2012.06043"
    family: ClassVar[Family] = "representation perturbation"
    needs: ClassVar[str] = "the gradient of one batch; a linear layer"
    needs_batch: ClassVar[bool] = True

    ratio: float = 0.4

    def __post_init__(self) -> None:
        check_range(self.name, "ratio", self.ratio, 0 <= self.ratio < 1, "from 0 to below 1")

    def refuses_model(self, model: nn.Module) -> str | None:
        """See :meth:`Defense.refuses_model`."""
        return None if _linear_layers(model) else "it has no linear layer"

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`."""
        if outgoing.batch is None:
            raise BadInput("Expected the gradient of one batch for soteria, got several steps.")
        linear = _linear_layers(outgoing.model)
        if not linear:
            raise BadInput("Expected a model with a linear layer for soteria, found none.")
        weight = joined(linear[-1], "weight")
        sensitivity = feature_sensitivity(
            outgoing.model, linear[-1], outgoing.batch[0], outgoing.noise
        )
        revealing = sensitivity.sum(dim=0)
        hidden = revealing.argsort(descending=True)[: int(self.ratio * len(revealing))]
        result = dict(outgoing.update)
        result[weight] = result[weight].clone()
        result[weight][:, hidden] = 0
        return result

    def entries_before(self, sent: SentUpdate) -> dict[str, Entries] | None:
        """See :meth:`Defense.entries_before`: of columns of 0, nothing is known."""
        weight = joined(_linear_layers(sent.model)[-1], "weight")
        value = sent.tensors[weight]
        hidden = ~value.any(dim=0, keepdim=True).expand_as(value)
        return {weight: Entries.exactly(value).between(hidden, -torch.inf, torch.inf)}

    def contradiction(self, sent: SentUpdate) -> str | None:
        """See :meth:`Defense.contradiction`."""
        linear = _linear_layers(sent.model)
        weight = joined(linear[-1], "weight") if linear else ""
        if weight not in sent.tensors:
            return "the gradient of a last linear layer is not in it"
        columns = sent.tensors[weight].any(dim=0)
        if int((~columns).sum()) < int(self.ratio * len(columns)):
            return f"{float((~columns).double().mean()):.0%} of the columns of `{weight}` are 0"
        return None


def _linear_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def feature_sensitivity(
    model: nn.Module, layer: str, inputs: Tensor, noise: Tensors | None = None
) -> Tensor:
    """``|r_i| / |dr_i/dx|`` of the features that enter a layer, for each sample.

    Args:
        model: the model; its mode and torch's random state are restored.
        layer: the layer's path.
        inputs: ``(batch, ...)``.
        noise: noise slot -> noise of the client's own forward pass, ``(batch, ...)``; other slots
            draw.

    Returns:
        ``(batch, features)``; 0 for features that are 0.
    """
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append(module_input(args, kwargs)), with_kwargs=True
    )
    training = model.training
    model.eval()

    def features(sample: Tensor, drawn: Tensors) -> Tensor:
        seen.clear()
        with torch.random.fork_rng(devices=[]), inject(model, drawn):
            torch.manual_seed(0)  # other random draws are the same every time
            model(sample[None])
        return seen[-1][0]

    try:
        rows = []
        for position, sample in enumerate(inputs):
            drawn = {n: value[position : position + 1] for n, value in (noise or {}).items()}
            values, pull, *_ = vjp(partial(features, drawn=drawn), sample)
            parts = torch.eye(len(values), dtype=values.dtype).split(CHUNK)
            slopes = torch.cat([vmap(pull)(part)[0].flatten(1).norm(dim=1) for part in parts])
            ratio = values.abs() / slopes
            rows.append(torch.where(values == 0, torch.zeros_like(ratio), ratio).detach())
        return torch.stack(rows)
    finally:
        hook.remove()
        model.train(training)
