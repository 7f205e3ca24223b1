"""NRA: the noise-restoring attack on variational bottlenecks."""

from dataclasses import dataclass
from typing import ClassVar

from fedleak.attacks.base import NoiseUse
from fedleak.attacks.matching.costs import CostName
from fedleak.attacks.matching.engine import GradientMatching, StartName


@dataclass(kw_only=True, eq=False, repr=False)
class NRA(GradientMatching):
    """IGA that optimises the noise of the forward pass together with the inputs.

    The noise ``(num_samples, ...)`` of every slot starts from N(0, 1) and is updated by the same
    Adam, with its gradient instead of the sign, without clamping or prior. The dummy loss contains
    the bottleneck's KL divergence, as the client's does. By default the samples decide on the four
    settings that may be None: those of the public code are for images, and on a recommender they
    find the items of few users.

    Args:
        iterations: see :class:`GradientMatching`.
        learning_rate: see :class:`GradientMatching`.
        cost: see :class:`GradientMatching`.
        start: see :class:`GradientMatching`.

    Raises:
        BadInput: if a value is out of its range or two values contradict each other.
    """

    name: ClassVar[str] = "nra"
    paper: ClassVar[str] = "noise-restoring attack on PRECODE, public code of November 2022"
    needs: ClassVar[str] = "as iga, and a model that draws noise"
    noise: ClassVar[NoiseUse] = "required"
    restores_noise: ClassVar[bool] = True

    iterations: int | None = None
    learning_rate: float | None = None
    cost: CostName | None = None
    start: StartName | None = None
