"""DLG and iDLG: the squared distance of gradients, minimised by L-BFGS."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from torch import Tensor

from fedleak.attacks.base import Problem
from fedleak.attacks.labels import recover_labels
from fedleak.attacks.matching.compile import Compiler
from fedleak.attacks.matching.costs import CostName
from fedleak.attacks.matching.engine import GradientMatching, StartName
from fedleak.attacks.matching.optimizers import OptimizerName


@dataclass(kw_only=True, eq=False, repr=False)
class DLG(GradientMatching):
    """L-BFGS on the squared distance of gradients, over dummy inputs and dummy labels together.

    Zhu et al. 2019, algorithm 1 and eq. 4. The labels are the softmax of logits
    ``(num_samples, num_classes)`` that start from N(0, 1); known labels are not used. Labels
    that are no classes are searched as numbers, those of a binary cross entropy as sigmoids of
    logits. There is no prior and inputs are not clamped. The paper's victims have sigmoid
    activations and weights drawn uniformly from (-0.5, 0.5).

    Args:
        iterations: number of L-BFGS steps, of up to 20 evaluations each, at least 1.
        learning_rate: see :class:`GradientMatching`.
        optimizer: see :class:`GradientMatching`.
        restarts: see :class:`GradientMatching`.
        patience: see :class:`GradientMatching`.
        at_once: see :class:`GradientMatching`.
        precision: see :class:`GradientMatching`; in float32 rounding of the squared distance ends
            the line search long before the image is reconstructed.
        simulate_steps: see :class:`GradientMatching`.

    Raises:
        BadInput: if a value is out of its range.
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
    cost: CostName = field(default="squared_error", init=False)
    start: StartName = field(default="normal", init=False)
    signed: bool = field(default=False, init=False)
    box: bool = field(default=False, init=False)
    decay: bool = field(default=False, init=False)
    layers: dict[str, float] | None = field(default=None, init=False)
    batch_norm: float = field(default=0.0, init=False)
    features: float = field(default=0.0, init=False)
    compile: Compiler = field(default="trace", init=False)
    noise_slots: list[str] | None = field(default=None, init=False)


class IDLG(DLG):
    """DLG with the label recovered from the sign of the classifier's gradient.

    The label of one sample is recovered (Zhao et al. 2020, eq. 3), even if the server knows it; the
    labels of a batch are counted in the gradient of the classifier's bias
    (:func:`fedleak.attacks.labels.bias_counts`). Labels that are no classes are those that are
    known, or follow from the gradient, or are searched.
    """

    name: ClassVar[str] = "idlg"
    paper: ClassVar[str] = "Zhao, Mopuri, Bilen, iDLG, 2020, https://arxiv.org/abs/2001.02610"
    needs: ClassVar[str] = "a gradient or weights; smooth activations; small batches"
    restores_labels: ClassVar[bool] = False

    def labels_of(self, problem: Problem) -> Tensor | None:
        """See :meth:`GradientMatching.labels_of`."""
        alone, loss = problem.knowledge.num_samples == 1, problem.loss
        if loss is not None and loss.kind != "classes":
            return super().labels_of(problem)
        facts = replace(problem.knowledge, label_recovery="idlg" if alone else "bias_counts")
        return recover_labels(problem.model, problem.gradient, facts, loss)
