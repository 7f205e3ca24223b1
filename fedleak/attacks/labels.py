"""Labels recovered from the classifier's gradient, where the server does not know them."""

import torch
from torch import Tensor, nn

from fedleak.errors import BadInput
from fedleak.updates import Knowledge, Tensors


def recover_labels(model: nn.Module, gradient: Tensors, knowledge: Knowledge) -> Tensor:
    """The labels of a batch from the gradient of the last linear layer's bias.

    With cross entropy, that gradient is the mean of (predicted probability - 1 for the label), so
    each sample lowers its label's entry by ``1 / num_samples``. The labels are taken one at a time,
    each from the lowest entry, which is then raised by what one sample lowers it. For one sample
    this is the sign rule of iDLG (Zhao, Mopuri, Bilen 2020, https://arxiv.org/abs/2001.02610).

    Args:
        model: the model, for finding its classifier.
        gradient: gradient by parameter name.
        knowledge: gives the numbers of samples and of classes.

    Returns:
        Labels ``(num_samples,)``, sorted.

    Raises:
        BadInput: if no linear layer with bias has as many outputs as there are classes.
    """
    entries = gradient[f"{_classifier(model, knowledge.num_classes)}.bias"].double().clone()
    labels = []
    for _ in range(knowledge.num_samples):
        label = int(entries.argmin())
        entries[label] += 1 / knowledge.num_samples
        labels.append(label)
    return torch.tensor(sorted(labels), device=entries.device)


def _classifier(model: nn.Module, num_classes: int) -> str:
    names: list[str] = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == num_classes
        and module.bias is not None
    ]
    if not names:
        raise BadInput(
            f"Expected a linear layer with bias and {num_classes} outputs to recover labels from, "
            f"found none in {type(model).__name__}: give the labels (`victims.labels: known`)."
        )
    return names[-1]
