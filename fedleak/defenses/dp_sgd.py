"""Differentially private SGD."""

import copy
import warnings
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedleak.defenses.base import Defense, Outgoing, check_range
from fedleak.errors import BadInput, require
from fedleak.extras import extras_explained
from fedleak.models.noise import inject
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import batch_loss

# Largest distance, over the gradient's norm, at which a batch's gradient and the mean of its
# samples' gradients count as the same.
TOLERANCE = 1e-3


class DPSGD(Defense):
    """Clips every sample's gradient, adds Gaussian noise to their sum, and divides by their number.

    ``(sum_i g_i / max(1, |g_i| / max_norm) + N(0, (noise_multiplier * max_norm)^2)) / batch``. What
    it costs in privacy (epsilon) depends on how batches are sampled over a whole training, which
    one gradient does not tell; Opacus's accountants compute it from the noise multiplier, the
    sampling rate, the number of steps and delta.

    It computes the gradient anew, sample by sample, with the noise that the client's own forward
    pass drew; the masks of an ``nn.Dropout``, which nobody recorded, are drawn again. It takes the
    memory of as many gradients as the batch has samples.

    Args:
        max_norm: bound C of the norm of a sample's gradient, positive.
        noise_multiplier: deviation of the noise over the bound, at least 0.

    Raises:
        BadInput: if a value is out of its range.
    """

    name: ClassVar[str] = "dp_sgd"
    paper: ClassVar[str] = "Abadi et al., CCS 2016, algorithm 1, arXiv 1607.00133"
    needs_batch: ClassVar[bool] = True
    starts_anew: ClassVar[bool] = True

    def __init__(self, *, max_norm: float = 4.0, noise_multiplier: float = 4.0) -> None:
        check_range(self.name, "max_norm", max_norm, 0 < max_norm < torch.inf, "positive")
        fits = 0 <= noise_multiplier < torch.inf
        check_range(self.name, "noise_multiplier", noise_multiplier, fits, "at least 0")
        self.max_norm = max_norm
        self.noise_multiplier = noise_multiplier

    def refuses_model(self, model: nn.Module) -> str | None:
        """See :meth:`Defense.refuses_model`; batch norm mixes the samples of a batch."""
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                return f"its batch norm `{name}` mixes the samples, which dp_sgd bounds one by one"
        return None

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`.

        Raises:
            BadInput: if the samples' gradients cannot be told apart; see :func:`sample_gradients`.
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
        deviation = self.noise_multiplier * self.max_norm
        # What is not trained has no gradient to be hidden, and stays zero.
        result = dict(outgoing.update)
        for name, value in samples.items():
            total = torch.tensordot(factors, value, dims=1)
            noise = torch.randn(total.shape, generator=generator).to(total)
            result[name] = ((total + deviation * noise) / len(factors)).to(outgoing.update[name])
        return result


def sample_gradients(model: nn.Module, batch: tuple[Tensor, Tensor], noise: Tensors) -> Tensors:
    """The gradient of every sample's own loss, by Opacus.

    That is its share in the batch's gradient times the number of samples.

    Args:
        model: the model, left as it is; its loss is the mean over the samples.
        batch: inputs and labels, ``(batch, ...)``.
        noise: noise slot -> what it is to give, ``(batch, ...)``; other slots draw.

    Returns:
        By name of the trained parameters: ``(batch, *shape)``.

    Raises:
        BadInput: if Opacus does not know a layer of the model, or the loss is another one.
    """
    # Slow to import, and of use to this defence alone.
    with extras_explained():
        from opacus.grad_sample import GradSampleModule

    own, kind = copy.deepcopy(model), type(model).__name__
    for module in own.modules():
        # Opacus's hooks forbid changing a layer's output in place.
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
        # Its hooks sleep in eval mode. A layer with weights of its own (batch norm is refused)
        # computes the same in both; dropout keeps its mode.
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
                f"Expected a model whose gradient Opacus can tell apart sample by sample, but it "
                f"fails on {kind}: {' '.join(str(error).split())}"
            ) from error
    result = {name: _samples_of(value, len(batch[0])) for name, value in trained.items()}
    _check_mean(kind, result, trained)
    return result


def _samples_of(parameter: Tensor, samples: int) -> Tensor:
    """What Opacus noted for a parameter; zeros for one that takes no part in the loss."""
    found = getattr(parameter, "grad_sample", None)
    return found if isinstance(found, Tensor) else parameter.new_zeros(samples, *parameter.shape)


def _check_mean(kind: str, samples: Tensors, trained: dict[str, nn.Parameter]) -> None:
    """Check the samples' gradients against the batch's, which the same backward pass has left."""
    wrong = scale = 0.0
    for name, parameter in trained.items():
        whole = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        wrong += float((samples[name].mean(dim=0) - whole).square().sum())
        scale += float(whole.square().sum())
    require(
        not wrong > TOLERANCE**2 * scale,
        f"Expected the loss of {kind} to be the mean of its samples' losses, as dp_sgd bounds each "
        "sample's gradient, but those that Opacus finds do not make up the batch's: use weights "
        "only inside of layers that keep the samples apart.",
    )
