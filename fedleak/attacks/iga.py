"""IGA, inverting gradients: the standard optimisation attack."""

from typing import ClassVar

from fedleak.attacks.matching.engine import GradientMatching


class IGA(GradientMatching):
    """Signed Adam on the cosine distance of gradients, with total variation and a box.

    On a model that draws noise it does what an attacker does who ignores the noise: the dummy
    forward pass draws afresh in every iteration. Defaults are those of the PRECODE paper's victims.
    """

    name: ClassVar[str] = "iga"
    paper: ClassVar[str] = (
        "Geiping et al., Inverting Gradients, NeurIPS 2020, https://arxiv.org/abs/2003.14053"
    )
    needs: ClassVar[str] = "a gradient or weights; labels known or recovered"
