"""IGA with the cost restricted to the layers before PRECODE."""

from typing import ClassVar

from fedleak.attacks.base import NoiseUse, Problem
from fedleak.attacks.matching.engine import GradientMatching
from fedleak.models.noise import before_noise
from fedleak.updates.knowledge import Knowledge


class PartialIGA(GradientMatching):
    """IGA that compares only the gradients of the layers before the model's noise.

    The noise is drawn in the bottleneck and randomises the gradients of the bottleneck and of the
    layers behind it most. Leaving these out of the cost is the attack on PRECODE by its own authors
    (Scheliga et al. 2022, section 4). The dummy forward pass draws new noise in every iteration, as
    in IGA.
    """

    name: ClassVar[str] = "iga_partial"
    paper: ClassVar[str] = (
        "Scheliga et al., Combining Variational Modeling with Partial Gradient Perturbation, 2022, "
        "https://arxiv.org/abs/2208.04767"
    )
    needs: ClassVar[str] = "as iga, and a model with layers before its noise"
    noise: ClassVar[NoiseUse] = "required"

    def refuses(self, knowledge: Knowledge) -> str | None:
        """See :meth:`Attack.refuses`."""
        reason = super().refuses(knowledge)
        names = [name for name, _ in knowledge.model.named_parameters()]
        if reason is None and not before_noise(names, knowledge.model):
            kind = type(knowledge.model).__name__
            return f"{self.name} compares the layers before the noise and {kind} has none"
        return reason

    def compared(self, problem: Problem) -> list[str]:
        """See :meth:`GradientMatching.compared`."""
        return before_noise(list(problem.gradient), problem.model)
