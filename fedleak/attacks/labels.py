"""Label recovery from the classifier's gradient, where the server does not know the labels.

For one sample and cross entropy, the gradient of a classifier ``W a + b`` is ``(p - y) a^T`` in the
weight and ``p - y`` in the bias, with predicted probabilities ``p``, one-hot label ``y`` and
features ``a``. So the label's entry is the only negative one. For a batch, the gradient is the mean
over its samples.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedleak.errors import BadInput, require, unknown_name
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge, LabelRecovery


def recover_labels(model: nn.Module, gradient: Tensors, knowledge: Knowledge) -> Tensor:
    """The labels of a batch from the gradient of the classifier, the last linear layer.

    Args:
        model: the model, whose last linear layer with ``num_classes`` outputs is the classifier.
        gradient: gradient by parameter name.
        knowledge: gives the method (``label_recovery``) and the numbers of samples and of classes.

    Returns:
        Labels ``(num_samples,)``, sorted.

    Raises:
        BadInput: if there is no such method, if it cannot be used on such a batch, or if the model
            has no linear layer with as many outputs as classes (and a bias, if the method needs
            one).
    """
    method, samples, classes = (
        knowledge.label_recovery, knowledge.num_samples, knowledge.num_classes,
    )  # fmt: skip
    if method not in METHODS:
        raise unknown_name("label recovery", method, METHODS)
    reason = refusal(method, num_samples=samples, num_classes=classes)
    require(reason is None, f"Expected a batch that {method} can recover labels of, but {reason}.")
    labels = METHODS[method](model, gradient, knowledge)
    device = next(iter(gradient.values())).device
    return torch.tensor(sorted(labels), device=device)


def refusal(method: LabelRecovery, *, num_samples: int, num_classes: int) -> str | None:
    """Why a method cannot be used on a batch, whatever the model. If None, it can.

    Args:
        method: its name.
        num_samples: size of the batch.
        num_classes: number of classes.
    """
    if method == "idlg" and num_samples > 1:
        return (
            f"idlg recovers the label of one sample, not of {num_samples}: try bias_counts or "
            "row_minima"
        )
    if method == "row_minima" and num_samples > num_classes:
        return (
            f"row_minima finds each label only once and there are {num_samples} samples of "
            f"{num_classes} classes: try bias_counts"
        )
    return None


def bias_counts(model: nn.Module, gradient: Tensors, knowledge: Knowledge) -> list[int]:
    """Labels with their counts from the gradient of the classifier's bias.

    That gradient is the mean of ``p - y``, so each sample lowers its label's entry by
    ``1 / num_samples``. The labels are taken one at a time, each from the lowest entry, to which
    ``1 / num_samples`` is then added: the sign rule of iDLG (Zhao, Mopuri, Bilen 2020,
    https://arxiv.org/abs/2001.02610) extended to batches. It is exact for one sample, and for more
    as long as the predictions are nearly uniform, as those of an untrained model are.

    Raises:
        BadInput: if no linear layer with bias has as many outputs as there are classes.
    """
    classifier = _classifier(model, knowledge.num_classes, bias=True)
    entries = gradient[f"{classifier}.bias"].double().clone()
    labels = []
    for _ in range(knowledge.num_samples):
        label = int(entries.argmin())
        entries[label] += 1 / knowledge.num_samples
        labels.append(label)
    return labels


def idlg(model: nn.Module, gradient: Tensors, knowledge: Knowledge) -> list[int]:
    """The label of one sample by the sign rule of iDLG.

    With a bias, the class of the lowest entry of its gradient (Zhao, Mopuri, Bilen 2020,
    https://arxiv.org/abs/2001.02610, g of eq. 3). Without a bias, the class whose row of the
    weight's gradient has the lowest maximum inner product with the other rows, which is not
    positive: the paper's form of the rule. Exact if the gradient is; if a defence has changed it,
    this is the class that comes nearest to the rule.

    Raises:
        BadInput: if no linear layer has as many outputs as there are classes; or if the classifier
            has no bias, there are two classes, and the features are of both signs, since both
            classes then satisfy the rule.
    """
    classifier = _classifier(model, knowledge.num_classes)
    if f"{classifier}.bias" in gradient:
        return [int(gradient[f"{classifier}.bias"].argmin())]
    rows = gradient[f"{classifier}.weight"].double()
    if len(rows) == 2:
        # The rows are opposite: only if the features are nonnegative, as after a ReLU or a
        # sigmoid, the negative row is the label's.
        require(
            not bool((rows[0] > 0).any() and (rows[0] < 0).any()),
            "Expected a classifier with bias, nonnegative features, or more than 2 classes to "
            f"recover a label by idlg, got none of them in {type(model).__name__}: give the "
            "labels (`victims.labels: known`).",
        )
        return [int(rows.sum(dim=1).argmin())]
    products = (rows @ rows.T).fill_diagonal_(-torch.inf)
    return [int(products.amax(dim=1).argmin())]


def row_minima(model: nn.Module, gradient: Tensors, knowledge: Knowledge) -> list[int]:
    """Labels from the minima of the rows of the classifier's weight gradient (GradInversion).

    The ``num_samples`` classes with the lowest minimum over the features (Yin et al., CVPR 2021,
    https://arxiv.org/abs/2104.07586, eq. 7). It needs no bias. It assumes nonnegative features, as
    after a ReLU or a sigmoid (PRECODE's are of both signs), and distinct labels.

    Raises:
        BadInput: if no linear layer has as many outputs as there are classes.
    """
    rows = gradient[f"{_classifier(model, knowledge.num_classes)}.weight"]
    minima = rows.amin(dim=1)
    return [int(label) for label in minima.argsort(stable=True)[: knowledge.num_samples]]


METHODS: dict[str, Callable[[nn.Module, Tensors, Knowledge], list[int]]] = {
    "bias_counts": bias_counts,
    "idlg": idlg,
    "row_minima": row_minima,
}
"""Name -> method; the names are those of :data:`fedleak.updates.knowledge.LabelRecovery`."""


def _classifier(model: nn.Module, num_classes: int, *, bias: bool = False) -> str:
    """Name of the last linear layer with ``num_classes`` outputs, and with a bias if asked for."""
    found = [
        (name, module.bias is not None)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == num_classes
    ]
    names: list[str] = [name for name, has_bias in found if has_bias or not bias]
    if not names:
        other = ", or try another method (`victims.labels: row_minima`)" if found else ""
        raise BadInput(
            f"Expected a linear layer {'with bias and' if bias else 'with'} {num_classes} outputs "
            f"to recover labels from, found none in {type(model).__name__}: give the labels "
            f"(`victims.labels: known`){other}."
        )
    return names[-1]
