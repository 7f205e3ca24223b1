"""IGA that leaves PRECODE's own and later layers out of the cost."""

from typing import ClassVar

from fedleak.attacks.base import NoiseUse, Problem
from fedleak.attacks.matching.engine import GradientMatching
from fedleak.models.noise import before_noise
from fedleak.updates.knowledge import Knowledge


class PartialIGA(GradientMatching):
    """Compares the gradients of those layers only that come before the model's noise.

    The noise enters in the bottleneck; the gradients of the bottleneck and of what follows are the
    most random ones. Leaving them out of the cost is the attack that the authors of PRECODE found
    against it themselves (Scheliga et al. 2022, section 4). The dummy forward pass draws afresh in
    every iteration, as for IGA.
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
