"""DLG and iDLG, the attacks that began it all: plain distance of gradients and L-BFGS."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from torch import Tensor

from fedleak.attacks.base import Problem
from fedleak.attacks.labels import recover_labels
from fedleak.attacks.matching.compile import Compiler
from fedleak.attacks.matching.engine import GradientMatching
from fedleak.attacks.matching.optimizers import OptimizerName


@dataclass(kw_only=True, eq=False, repr=False)
class DLG(GradientMatching):
    """L-BFGS on the squared distance of gradients, over dummy inputs and dummy labels together.

    The labels are the softmax of free numbers that start from N(0, 1); what the server knows of
    labels is not used. No prior, no box. The paper's victims have sigmoid activations and weights
    drawn uniformly from (-0.5, 0.5).

    Args:
        iterations: number of L-BFGS steps, of up to 20 evaluations each.
        learning_rate: see :class:`GradientMatching`.
        optimizer: see :class:`GradientMatching`.
        restarts: see :class:`GradientMatching`.
        patience: see :class:`GradientMatching`.
        at_once: see :class:`GradientMatching`.
        precision: see :class:`GradientMatching`; in float32 the squared distance is lost in
            rounding, and the line search with it, long before the picture is there.
        simulate_steps: see :class:`GradientMatching`.
    """

    name: ClassVar[str] = "dlg"
    paper: ClassVar[str] = (
        "Zhu et al., Deep Leakage from Gradients, NeurIPS 2019, https://arxiv.org/abs/1906.08935"
    )
    needs: ClassVar[str] = "a gradient or weights; smooth activations; small batches"
    restores_labels: ClassVar[bool] = True
    boxed: ClassVar[bool] = False

    iterations: int = 300
    learning_rate: float = 1.0
    optimizer: OptimizerName = "lbfgs"
    precision: Literal["float32", "float64"] | None = "float64"
    # Fixed by the paper.
    total_variation: float = field(default=0.0, init=False)
    cost: Literal["cosine", "squared_error", "relative_error"] = field(
        default="squared_error", init=False
    )
    signed: bool = field(default=False, init=False)
    box: bool = field(default=False, init=False)
    decay: bool = field(default=False, init=False)
    layers: dict[str, float] | None = field(default=None, init=False)
    batch_norm: float = field(default=0.0, init=False)
    features: float = field(default=0.0, init=False)
    compile: Compiler = field(default="trace", init=False)
    noise_slots: list[str] | None = field(default=None, init=False)


class IDLG(DLG):
    """DLG with the label from the sign of the classifier's gradient.

    It finds the label itself, even where the server knows it, as the paper has it for one sample;
    of a batch it counts the labels in the gradient of the classifier's bias.
    """

    name: ClassVar[str] = "idlg"
    paper: ClassVar[str] = "Zhao, Mopuri, Bilen, iDLG, 2020, https://arxiv.org/abs/2001.02610"
    needs: ClassVar[str] = "a gradient or weights; smooth activations; small batches"
    restores_labels: ClassVar[bool] = False

    def labels_of(self, problem: Problem) -> Tensor:
        """See :meth:`GradientMatching.labels_of`."""
        alone = problem.knowledge.num_samples == 1
        facts = replace(problem.knowledge, label_recovery="idlg" if alone else "bias_counts")
        return recover_labels(problem.model, problem.gradient, facts)
