"""Differentially private SGD."""

import copy
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedleak.defenses.base import Defense, Family, Outgoing, check_range
from fedleak.errors import BadInput, require
from fedleak.extras import extras_explained
from fedleak.models.noise import inject
from fedleak.updates.entries import Entries, SentUpdate
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import batch_loss

# Largest relative distance at which a batch's gradient and the mean of its per-sample gradients
# count as equal.
TOLERANCE = 1e-3


@dataclass(kw_only=True, eq=False, repr=False)
class DPSGD(Defense):
    """Clips every sample's gradient, adds Gaussian noise to their sum, and divides by their number.

    ``(sum_i g_i / max(1, |g_i| / max_norm) + N(0, (noise_multiplier * max_norm)^2)) / batch``
    (Abadi et al. 2016, algorithm 1). The privacy loss (epsilon) depends on how batches are sampled
    over the whole training; Opacus's accountants compute it from the noise multiplier, the sampling
    rate, the number of steps and delta.

    The gradient is recomputed sample by sample, with the noise of the client's own forward pass;
    the masks of an ``nn.Dropout`` are not recorded and drawn again. Memory is needed for as many
    gradients as the batch has samples.

    Args:
        max_norm: bound C on the norm of a sample's gradient, positive.
        noise_multiplier: standard deviation of the noise over the bound, at least 0.

    Raises:
        BadInput: if a value is out of its range.
    """

    name: ClassVar[str] = "dp_sgd"
    paper: ClassVar[str] = "Abadi et al., CCS 2016, algorithm 1, arXiv 1607.00133"
    family: ClassVar[Family] = "differential privacy"
    needs: ClassVar[str] = "the gradient of one batch; no batch norm; layers that Opacus knows"
    randomised: ClassVar[bool] = True
    needs_batch: ClassVar[bool] = True
    recomputes_gradient: ClassVar[bool] = True

    max_norm: float = 4.0
    noise_multiplier: float = 4.0

    def __post_init__(self) -> None:
        norm, multiplier = self.max_norm, self.noise_multiplier
        check_range(self.name, "max_norm", norm, 0 < norm < torch.inf, "positive")
        fits = 0 <= multiplier < torch.inf
        check_range(self.name, "noise_multiplier", multiplier, fits, "at least 0")

    def refuses_model(self, model: nn.Module) -> str | None:
        """See :meth:`Defense.refuses_model`; with batch norm there are no per-sample gradients."""
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                return f"its batch norm `{name}` mixes the samples, which dp_sgd bounds one by one"
        return None

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`.

        Raises:
            BadInput: if there are no per-sample gradients; see :func:`sample_gradients`.
        """
        if outgoing.batch is None:
            raise BadInput("Expected the gradient of one batch for dp_sgd, got several steps.")
        reason = self.refuses_model(outgoing.model)
        require(reason is None, f"Expected a model for dp_sgd, but {reason}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            samples = sample_gradients(outgoing.model, outgoing.batch, outgoing.noise)
        norms = torch.stack([value.flatten(1).norm(dim=1) for value in samples.values()])
        factors = (self.max_norm / norms.norm(dim=0)).clamp(max=1)
        scale = self.noise_multiplier * self.max_norm  # standard deviation of the noise
        # Parameters that are not trained have no gradient to hide, and stay 0.
        result = dict(outgoing.update)
        for name, value in samples.items():
            total = torch.tensordot(factors, value, dims=1)
            noise = torch.randn(total.shape, generator=generator).to(total)
            result[name] = ((total + scale * noise) / len(factors)).to(outgoing.update[name])
        return result

    def entries_before(self, sent: SentUpdate) -> dict[str, Entries] | None:
        """See :meth:`Defense.entries_before`, up to the factors by which samples were clipped."""
        deviation = self.noise_multiplier * self.max_norm / sent.samples
        return {
            name: Entries.noisy(value, deviation)
            for name, value in sent.tensors.items()
            if bool(value.any())
        }


def sample_gradients(model: nn.Module, batch: tuple[Tensor, Tensor], noise: Tensors) -> Tensors:
    """Per-sample gradients by Opacus: the gradient of the loss of each sample alone.

    Args:
        model: the model, not changed; its loss is the mean over the samples.
        batch: inputs ``(batch, ...)`` and labels ``(batch,)``.
        noise: noise slot -> noise to inject, ``(batch, ...)``; other slots draw.

    Returns:
        Name of each trained parameter -> gradients ``(batch, *shape)``.

    Raises:
        BadInput: if Opacus does not support a layer of the model, or the loss is not the mean of
            the samples' losses.
    """
    # Slow to import, and used by this defence alone.
    with extras_explained():
        from opacus.grad_sample import GradSampleModule

    own, kind = copy.deepcopy(model), type(model).__name__
    for module in own.modules():
        # Opacus's hooks forbid changing a layer's output in place.
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
        # Its hooks are inactive in eval mode. A layer with weights of its own (batch norm is
        # refused) computes the same in both modes; dropout keeps its mode.
        if any(True for _ in module.parameters(recurse=False)):
            module.training = True
    trained = {name: value for name, value in own.named_parameters() if value.requires_grad}
    with warnings.catch_warnings(), inject(own, noise):
        # Opacus warns of inputs without gradients, Lightning of logging outside a training.
        warnings.simplefilter("ignore")
        try:
            GradSampleModule(own, loss_reduction="mean")
            batch_loss(own, batch).backward()
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(
                f"Expected a model for which Opacus can compute per-sample gradients, but it "
                f"fails on {kind}: {' '.join(str(error).split())}"
            ) from error
    result = {name: _samples_of(value, len(batch[0])) for name, value in trained.items()}
    _check_mean(kind, result, trained)
    return result


def _samples_of(parameter: Tensor, samples: int) -> Tensor:
    """Per-sample gradients of a parameter; zeros for one that the loss does not depend on."""
    found = getattr(parameter, "grad_sample", None)
    return found if isinstance(found, Tensor) else parameter.new_zeros(samples, *parameter.shape)


def _check_mean(kind: str, samples: Tensors, trained: dict[str, nn.Parameter]) -> None:
    """Check that the mean of the per-sample gradients is the batch's gradient."""
    wrong = scale = 0.0
    for name, parameter in trained.items():
        whole = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        wrong += float((samples[name].mean(dim=0) - whole).square().sum())
        scale += float(whole.square().sum())
    require(
        not wrong > TOLERANCE**2 * scale,
        f"Expected the loss of {kind} to be the mean of its samples' losses, as dp_sgd clips each "
        "sample's gradient, but the per-sample gradients do not add up to the batch's: use weights "
        "only in layers that process samples independently.",
    )
