"""CENSOR: a random vector orthogonal to the gradient is sent in its place."""

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.defenses.base import Defense, Family, Outgoing, check_range, filtered
from fedleak.errors import BadInput
from fedleak.models.noise import inject
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import batch_loss


@dataclass(kw_only=True, eq=False, repr=False)
class Censor(Defense):
    """Sends, of several random vectors orthogonal to the gradient, the one that helps most.

    For every tensor a normal vector is drawn, its component along the tensor's gradient taken off,
    and the rest scaled to the gradient's norm. Of several such vectors the one is sent whose step
    leaves the least loss on the client's own batch. The gradient itself is sent if none leaves less
    than before the step. So what is sent is orthogonal to the gradient tensor by tensor and has
    its norms; it helps the training only through the choice.

    The loss of a trial is computed in eval mode, with the noise of the client's own pass.

    Args:
        trials: number of vectors that are drawn, at least 1.
        learning_rate: of the steps by which they are compared, positive.

    Raises:
        BadInput: if a value is out of its range.
    """

    name: ClassVar[str] = "censor"
    paper: ClassVar[str] = "Zhang et al., CENSOR, NDSS 2025, section IV, arXiv 2501.15718"
    family: ClassVar[Family] = "gradient perturbation"
    needs: ClassVar[str] = "the gradient of one batch"
    needs_batch: ClassVar[bool] = True
    randomised: ClassVar[bool] = True

    trials: int = 20
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        check_range(self.name, "trials", self.trials, self.trials >= 1, "at least 1")
        fits = 0 < self.learning_rate < math.inf
        check_range(self.name, "learning_rate", self.learning_rate, fits, "positive")

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`.

        Raises:
            BadInput: if the update is of several steps, or holds NaN or infinity.
        """
        if outgoing.batch is None:
            raise BadInput("Expected the gradient of one batch for censor, got several steps.")
        gradient = filtered(self.name, outgoing.update)
        model = copy.deepcopy(outgoing.model).eval()
        weights = dict(model.named_parameters())
        start = {name: value.detach().clone() for name, value in weights.items()}

        def loss_after(step: Tensors) -> float:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), inject(model, outgoing.noise):
                torch.manual_seed(0)  # other random draws are the same every time
                for name, value in weights.items():
                    moved = self.learning_rate * step[name] if name in step else 0.0
                    value.copy_(start[name] - moved)
                return float(batch_loss(model, outgoing.batch))

        best, least = gradient, loss_after({})
        for _ in range(self.trials):
            trial = {n: _orthogonal(value, generator) for n, value in gradient.items()}
            loss = loss_after(trial)
            if loss < least:
                best, least = trial, loss
        return dict(outgoing.update) | best


def _orthogonal(gradient: Tensor, generator: torch.Generator) -> Tensor:
    """A random tensor orthogonal to a gradient and of its norm; 0 where there is none."""
    own = gradient.double()
    size = own.norm()
    drawn = torch.randn(own.shape, generator=generator, dtype=torch.float64)
    if not bool(size):
        return torch.zeros_like(gradient)
    unit = own / size
    rest = drawn - (drawn * unit).sum() * unit
    length = rest.norm()
    # A tensor of one entry has nothing orthogonal to it but 0.
    if gradient.numel() == 1:
        return torch.zeros_like(gradient)
    return (rest * (size / length)).to(gradient)
