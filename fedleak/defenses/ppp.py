"""Partial perturbation with PRECODE: noise in the gradients before the bottleneck."""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from fedleak.defenses.base import Outgoing
from fedleak.defenses.noise import NoisyGradients
from fedleak.models.noise import before_noise
from fedleak.updates.entries import Entries, SentUpdate
from fedleak.updates.files import Tensors


class PPP(NoisyGradients):
    """Adds noise to the gradients of the layers before the model's bottleneck, and to no others.

    The bottleneck is the first module that draws noise, see
    :func:`fedleak.models.noise.before_noise`.

    The bottleneck randomises its own gradients and those of the layers behind it. An attack that
    leaves these out of its cost is met by noise in the other gradients, of which less suffices than
    if all were perturbed (Scheliga et al. 2022).

    Args:
        sigma: see :class:`NoisyGradients`; if relative, to the norm of the perturbed gradients.
        distribution: see :class:`NoisyGradients`.
        relative: see :class:`NoisyGradients`.

    Raises:
        BadInput: if sigma is negative.
    """

    name: ClassVar[str] = "ppp"
    paper: ClassVar[str] = (
        "Scheliga et al., Combining Variational Modeling with Partial Gradient Perturbation, 2022, "
        "arXiv 2208.04767"
    )
    needs: ClassVar[str] = "a model with layers before its noise"

    def refuses_model(self, model: nn.Module) -> str | None:
        """See :meth:`Defense.refuses_model`."""
        names = [name for name, _ in model.named_parameters()]
        return (
            None
            if before_noise(names, model)
            else "it has no layers before a bottleneck or other noise"
        )

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`."""
        update = outgoing.update
        perturbed = {name: update[name] for name in before_noise(list(update), outgoing.model)}
        part = replace(outgoing, update=perturbed)
        return dict(update) | super().protect(part, generator=generator, memory=memory)

    def entries_before(self, sent: SentUpdate) -> dict[str, Entries] | None:
        """See :meth:`Defense.entries_before`; parameters behind the noise came as they were."""
        return super().entries_before(self._perturbed(sent))

    def contradiction(self, sent: SentUpdate) -> str | None:
        """See :meth:`Defense.contradiction`."""
        return super().contradiction(self._perturbed(sent))

    def _perturbed(self, sent: SentUpdate) -> SentUpdate:
        names = before_noise(list(sent.tensors), sent.model)
        return replace(sent, tensors={name: sent.tensors[name] for name in names})
