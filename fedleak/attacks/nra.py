"""NRA, the noise-restoring attack on variational bottlenecks."""

from typing import ClassVar

from fedleak.attacks.base import NoiseUse
from fedleak.attacks.matching.engine import GradientMatching


class NRA(GradientMatching):
    """IGA that optimises the noise of the forward pass together with the inputs.

    The noise of every slot starts from N(0, 1) and is moved by the same Adam, by its gradient
    itself (not the sign), without box or prior. The dummy gradient contains the bottleneck's
    divergence term, as the client's does.
    """

    name: ClassVar[str] = "nra"
    paper: ClassVar[str] = "noise-restoring attack on PRECODE, public code of November 2022"
    needs: ClassVar[str] = "as iga, and a model that draws noise"
    noise: ClassVar[NoiseUse] = "required"
    restores_noise: ClassVar[bool] = True
