"""IGA that leaves PRECODE's own and later layers out of the cost."""

from typing import ClassVar

from fedleak.attacks.base import Problem
from fedleak.attacks.matching import GradientMatching
from fedleak.models.noise import noise_slots
from fedleak.updates import Knowledge


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

    def refuses(self, knowledge: Knowledge) -> str | None:
        """See :meth:`Attack.refuses`."""
        kind = type(knowledge.model).__name__
        if not noise_slots(knowledge.model):
            return f"{self.name} leaves out the layers from the noise on and {kind} draws none"
        names = [name for name, _ in knowledge.model.named_parameters()]
        if not _before(names, next(iter(noise_slots(knowledge.model)))):
            return f"{self.name} compares the layers before the noise and {kind} has none"
        return None

    def compared(self, problem: Problem) -> list[str]:
        """See :meth:`GradientMatching.compared`."""
        return _before(list(problem.gradient), next(iter(noise_slots(problem.model))))


def _before(names: list[str], slot: str) -> list[str]:
    """The parameters that a model holds before the module that owns a noise slot."""
    owner = slot.rpartition(".")[0]
    prefix = f"{owner}." if owner else ""
    first = next((at for at, name in enumerate(names) if name.startswith(prefix)), len(names))
    return names[:first]
