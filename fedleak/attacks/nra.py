"""NRA: the noise-restoring attack on variational bottlenecks."""

from typing import ClassVar

from fedleak.attacks.base import NoiseUse
from fedleak.attacks.matching.engine import GradientMatching


class NRA(GradientMatching):
    """IGA that optimises the noise of the forward pass together with the inputs.

    The noise ``(num_samples, ...)`` of every slot starts from N(0, 1) and is updated by the same
    Adam, with its gradient instead of the sign, without clamping or prior. The dummy loss contains
    the bottleneck's KL divergence, as the client's does.
    """

    name: ClassVar[str] = "nra"
    paper: ClassVar[str] = "noise-restoring attack on PRECODE, public code of November 2022"
    needs: ClassVar[str] = "as iga, and a model that draws noise"
    noise: ClassVar[NoiseUse] = "required"
    restores_noise: ClassVar[bool] = True
