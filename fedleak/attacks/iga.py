"""IGA (Inverting Gradients): the standard optimisation-based attack."""

from typing import ClassVar

from fedleak.attacks.matching.engine import GradientMatching


class IGA(GradientMatching):
    """Signed Adam on the cosine distance of gradients, with total variation as the prior.

    Geiping et al. 2020, section 4, eq. 4. Inputs are clamped to the valid range after each step. It
    ignores the noise of a model: the dummy forward pass draws new noise in every iteration. The
    defaults are those of the PRECODE paper's experiments.
    """

    name: ClassVar[str] = "iga"
    paper: ClassVar[str] = (
        "Geiping et al., Inverting Gradients, NeurIPS 2020, https://arxiv.org/abs/2003.14053"
    )
    needs: ClassVar[str] = "a gradient or weights; labels known or recovered"
