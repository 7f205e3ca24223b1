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
    leaves the least loss on the client's own batch. So what is sent is orthogonal to the gradient
    tensor by tensor and has its norms; it helps the training only through the choice, and the
    gradient itself is never sent, also where every trial raises the loss.

    The loss of a trial is computed in float64 and in eval mode, with the noise of the client's own
    pass: along an orthogonal step it changes by the square of the step only.

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
        model = copy.deepcopy(outgoing.model).double().eval()
        inputs, labels = outgoing.batch
        batch = inputs.double(), labels.double() if labels.is_floating_point() else labels
        noise = {slot: value.double() for slot, value in outgoing.noise.items()}
        weights = dict(model.named_parameters())
        start = {name: value.detach().clone() for name, value in weights.items()}

        def loss_after(step: Tensors) -> float:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), inject(model, noise):
                torch.manual_seed(0)  # other random draws are the same every time
                for name, value in weights.items():
                    moved = self.learning_rate * step[name].double() if name in step else 0.0
                    value.copy_(start[name] - moved)
                return float(batch_loss(model, batch))

        trials = (
            {name: _orthogonal(value, generator) for name, value in gradient.items()}
            for _ in range(self.trials)
        )
        return dict(outgoing.update) | min(trials, key=loss_after)


def _orthogonal(gradient: Tensor, generator: torch.Generator) -> Tensor:
    """A random tensor orthogonal to a gradient and of its norm; 0 where there is none."""
    own = gradient.double()
    size = own.norm()
    drawn = torch.randn(own.shape, generator=generator, dtype=torch.float64)
    # A tensor of one entry has nothing orthogonal to it but 0.
    if not bool(size) or gradient.numel() == 1:
        return torch.zeros_like(gradient)
    unit = own / size
    rest = drawn - (drawn * unit).sum() * unit
    found: Tensor = (rest * (size / rest.norm())).to(gradient)
    return found
