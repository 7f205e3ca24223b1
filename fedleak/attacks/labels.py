"""Label recovery from the gradient of the last linear layer, where the server does not know them.

For one sample and cross entropy, the gradient of a classifier ``W a + b`` is ``(p - y) a^T`` in the
weight and ``p - y`` in the bias, with predicted probabilities ``p``, one-hot label ``y`` and
features ``a``. So the label's entry is the only negative one. For a batch, the gradient is the mean
over its samples. How a loss differs from that (a sum, a factor, class weights, label smoothing,
another loss) is found out by calling it (:mod:`fedleak.updates.loss_probe`).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedleak.attacks.closed_form.linear import linear_input
from fedleak.errors import BadInput, require, unknown_name
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge, LabelRecovery
from fedleak.updates.loss_probe import CrossEntropyForm, LossProbe
from fedleak.updates.naming import joined

# Dummy samples whose predictions stand for those of a batch.
DUMMIES = 32
# Labels of one sample that are tried where the loss is no cross entropy.
MOST_TRIED = 256
# How the labels are given.
GIVE = "`labels=` in Python, `victims.labels: known` in a run"


class NotDetermined(BadInput):
    """The gradient does not determine targets that are no classes: they have to be searched."""


def recover_labels(
    model: nn.Module, gradient: Tensors, knowledge: Knowledge, probe: LossProbe | None = None
) -> Tensor:
    """The labels of a batch from the gradient of the last linear layer.

    Classes and labels of 0 or 1 are counted in a batch. Other targets, such as those of a
    regression, follow for one sample: its gradient determines the layer's input, hence its output,
    and the target is that for which the loss has this gradient in the output.

    Args:
        model: the model with the sent weights, in the client's modes. The layer is the last linear
            layer with ``num_classes`` outputs, or the last one if none has as many and the labels
            are no classes.
        gradient: gradient by parameter name.
        knowledge: gives the loss, the method (``label_recovery``) and the number of samples.
        probe: the loss of this model and knowledge. If None, it is made.

    Returns:
        Labels ``(num_samples, ...)`` as the loss takes them; those of a batch are sorted. Zeros if
        the loss does not depend on them.

    Raises:
        NotDetermined: if the labels are no classes, and the gradient does not determine them.
        BadInput: if there is no such method, if it cannot be used on such a batch or loss, or if
            the model has no such layer (with a bias, if the method needs one), or its gradient did
            not come or is 0.
    """
    method, samples = knowledge.label_recovery, knowledge.num_samples
    if method not in METHODS:
        raise unknown_name("label recovery", method, METHODS)
    probe = LossProbe(model, knowledge) if probe is None else probe
    device = next(iter(gradient.values())).device
    if probe.kind == "none":
        return probe.labels(samples).to(device)
    if probe.kind == "other":
        raise BadInput(
            f"Expected a loss that takes classes {(samples,)}, or numbers of that shape or one for "
            f"each output, to recover labels, but that of {type(model).__name__} takes none of "
            "them: give the labels, or `label_example`."
        )
    if probe.kind == "classes":
        return torch.tensor(sorted(_classes(model, gradient, knowledge, probe)), device=device)
    return _numbers(model, gradient, knowledge, probe).to(device)


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


# ----------------------------------------------------------------------------------------- classes


def _classes(
    model: nn.Module, gradient: Tensors, knowledge: Knowledge, probe: LossProbe
) -> list[int]:
    method, samples, form = knowledge.label_recovery, knowledge.num_samples, probe.cross_entropy
    layer = _layer(model, knowledge, probe, bias=method == "bias_counts")
    reason = refusal(method, num_samples=samples, num_classes=probe.outputs)
    require(reason is None, f"Expected a batch that {method} can recover labels of, but {reason}.")
    parameter = "weight" if method == "row_minima" else "bias"
    if method == "idlg" and joined(layer, "bias") not in gradient:
        parameter = "weight"
    _require_moved(gradient, joined(layer, parameter))
    if samples == 1 and knowledge.steps == 1 and (form is None or form.is_smoothed):
        found = _class_of_one_sample(model, gradient, layer, probe)
        if found is not None:
            return [found]
    if form is None:
        raise BadInput(
            f"Expected a loss that is a cross entropy (weighted, smoothed, a sum or a mean) to "
            f"recover the labels of {samples} sample{'s' * (samples > 1)}, but that of "
            f"{type(model).__name__} is none: give the labels."
        )
    if form.step < 0 or (not form.is_even and float(form.divisor.sum()) < 0):
        gradient = {name: -value for name, value in gradient.items()}
    return METHODS[method](gradient, layer, knowledge, probe)


def bias_counts(gradient: Tensors, layer: str, knowledge: Knowledge, probe: LossProbe) -> list[int]:
    """Labels with their counts from the gradient of the classifier's bias.

    Of the mean cross entropy, that gradient is the mean of ``p - y``, so each sample lowers its
    label's entry by ``1 / num_samples``. The labels are taken one at a time, each from the lowest
    entry, to which ``1 / num_samples`` (of another loss, what a label lowers it by) is then added:
    the sign rule of iDLG (Zhao, Mopuri, Bilen 2020, https://arxiv.org/abs/2001.02610) extended to
    batches. It is exact for one sample, and for more as long as the predictions are nearly uniform,
    as those of an untrained model are. Over several epochs a model learns the labels, and each
    lowers its entry by less: of K classes by ``K q / num_samples`` if every other class is
    predicted with q. Then q is the entry of a class without samples, and is taken from the highest
    entries. If classes have weights or labels are smoothed, the counts are the whole numbers
    nearest to those by which the predictions for dummy samples give this gradient.

    Args:
        gradient: gradient by parameter name.
        layer: the classifier.
        knowledge: gives the number of samples.
        probe: the loss, a cross entropy.
    """
    entries, form = gradient[joined(layer, "bias")].double().clone(), probe.cross_entropy
    assert form is not None
    samples = knowledge.num_samples
    if samples > 1 and (form.is_smoothed or not form.is_even):
        return _weighted_counts(entries.cpu(), form, _predictions(knowledge, probe), samples)
    labels, step = [], abs(form.step)
    if knowledge.epochs > 1:
        absent = entries[entries > entries.max() / 2]
        step = min(step, len(entries) * float(absent.mean())) if len(absent) else step
    for _ in range(samples):
        label = int(entries.argmin())
        entries[label] += step / samples
        labels.append(label)
    return labels


def _weighted_counts(
    entries: Tensor, form: CrossEntropyForm, predicted: Tensor, samples: int
) -> list[int]:
    """Labels whose counts n solve ``sum_k n_k (slope_k p - target_k) = g sum_k n_k divisor_k``."""
    sign = 1.0 if float(form.divisor.sum()) > 0 else -1.0
    rows = form.slope[:, None] * predicted - form.target - form.divisor[:, None] * entries * sign
    # The equations sum to 0; that of the number of samples must hold.
    matrix = torch.cat([rows.T, torch.full((1, len(entries)), 1e3 * float(rows.abs().max()))])
    wanted = torch.zeros(len(matrix), dtype=matrix.dtype)
    wanted[-1] = samples * matrix[-1, 0]
    counts = torch.linalg.lstsq(matrix, wanted[:, None]).solution[:, 0].clamp_min(0)
    counts = counts * samples / counts.sum().clamp_min(1e-12)
    whole = counts.floor()
    left = (counts - whole).argsort(descending=True, stable=True)
    whole[left[: samples - int(whole.sum())]] += 1
    return [label for label, count in enumerate(whole.long().tolist()) for _ in range(count)]


def idlg(gradient: Tensors, layer: str, knowledge: Knowledge, probe: LossProbe) -> list[int]:
    """The label of one sample by the sign rule of iDLG.

    With a bias, the class of the lowest entry of its gradient (Zhao, Mopuri, Bilen 2020,
    https://arxiv.org/abs/2001.02610, g of eq. 3). Without a bias, the class whose row of the
    weight's gradient has the lowest maximum inner product with the other rows, which is not
    positive: the paper's form of the rule. Exact if the gradient is; if a defence has changed it,
    this is the class that comes nearest to the rule.

    Args:
        gradient: see :func:`bias_counts`.
        layer: see :func:`bias_counts`.
        knowledge: gives the model, for messages.
        probe: see :func:`bias_counts`.

    Raises:
        BadInput: if the classifier has no bias, there are two classes, and the features are of both
            signs, since both classes then satisfy the rule.
    """
    if joined(layer, "bias") in gradient:
        return [int(gradient[joined(layer, "bias")].argmin())]
    rows = gradient[joined(layer, "weight")].double()
    if len(rows) == 2:
        # The rows are opposite: only if the features are nonnegative, as after a ReLU or a
        # sigmoid, the negative row is the label's.
        require(
            not bool((rows[0] > 0).any() and (rows[0] < 0).any()),
            "Expected a classifier with bias, nonnegative features, or more than 2 classes to "
            f"recover a label by idlg, got none of them in {type(knowledge.model).__name__}: give "
            f"the labels ({GIVE}).",
        )
        return [int(rows.sum(dim=1).argmin())]
    products = (rows @ rows.T).fill_diagonal_(-torch.inf)
    return [int(products.amax(dim=1).argmin())]


def row_minima(gradient: Tensors, layer: str, knowledge: Knowledge, probe: LossProbe) -> list[int]:
    """Labels from the minima of the rows of the classifier's weight gradient (GradInversion).

    The ``num_samples`` classes with the lowest minimum over the features (Yin et al., CVPR 2021,
    https://arxiv.org/abs/2104.07586, eq. 7). It needs no bias. It assumes nonnegative features, as
    after a ReLU or a sigmoid (PRECODE's are of both signs), and distinct labels.

    Args:
        gradient: see :func:`bias_counts`.
        layer: see :func:`bias_counts`.
        knowledge: see :func:`bias_counts`.
        probe: see :func:`bias_counts`.
    """
    minima = gradient[joined(layer, "weight")].amin(dim=1)
    return [int(label) for label in minima.argsort(stable=True)[: knowledge.num_samples]]


METHODS: dict[str, Callable[[Tensors, str, Knowledge, LossProbe], list[int]]] = {
    "bias_counts": bias_counts,
    "idlg": idlg,
    "row_minima": row_minima,
}
"""Name -> method; the names are those of :data:`fedleak.updates.knowledge.LabelRecovery`."""


def _class_of_one_sample(
    model: nn.Module, gradient: Tensors, layer: str, probe: LossProbe
) -> int | None:
    """The class for which the loss has the gradient that came, at the sample's own logits."""
    logits = _output_of_one_sample(model, gradient, layer)
    if logits is None:
        return None
    entries, form = gradient[joined(layer, "bias")].double().cpu(), probe.cross_entropy
    if form is not None:
        predicted = logits.softmax(dim=0)
        rows = (form.slope[:, None] * predicted - form.target) / form.divisor[:, None]
        tried = list(range(len(entries)))
    else:
        tried = entries.abs().argsort(descending=True)[:MOST_TRIED].tolist()
        outputs = logits[None].to(next(model.parameters()).device)
        like = next(probe.model.parameters())
        rows = (
            torch.stack(
                [
                    probe.gradient(outputs.to(like), torch.tensor([label], device=like.device))[0]
                    for label in tried
                ]
            )
            .double()
            .cpu()
        )
    # By direction: a client may clip its gradient.
    agreement = rows @ entries / rows.norm(dim=1).clamp_min(1e-300)
    return int(tried[int(agreement.argmax())])


# ----------------------------------------------------------------------------------------- numbers


def _numbers(model: nn.Module, gradient: Tensors, knowledge: Knowledge, probe: LossProbe) -> Tensor:
    """Targets that are no classes: 0 or 1 by sign and count, others of one sample."""
    samples = knowledge.num_samples
    layer = _layer(model, knowledge, probe, bias=True)
    _require_moved(gradient, joined(layer, "bias"))
    entries = gradient[joined(layer, "bias")].detach().double().cpu()
    one = samples == 1 and (knowledge.steps == 1 or probe.kind == "binary")
    if probe.kind == "binary" and one:
        # The gradient of an output is that of p - y, times what is positive.
        kind = torch.long if probe.whole else next(model.parameters()).dtype
        return (entries < 0).to(kind).reshape(1, *probe.shape)
    if probe.kind == "binary" and probe.outputs == 1:
        return _binary_counts(float(entries[0]), knowledge, probe)
    if one:
        output = _output_of_one_sample(model, gradient, layer)
        found = None if output is None else probe.solve(output, entries)
        if found is not None:
            return found.to(next(model.parameters()).dtype)
    steps = f" in {knowledge.steps} steps" if knowledge.steps > 1 else ""
    raise NotDetermined(
        f"Expected labels of {samples} sample{'s' * (samples > 1)}{steps} that the gradient "
        "determines, but targets that are no classes are determined for one sample and one step "
        "alone, if its features and the loss allow it: give the labels, or use an attack that "
        "searches them together with the inputs, such as dlg or iga."
    )


def _binary_counts(entry: float, knowledge: Knowledge, probe: LossProbe) -> Tensor:
    """Labels of 0 and 1 of a batch, sorted, by the number that gives the gradient of the bias."""
    outputs = probe.output_of(probe.dummies(DUMMIES))[: probe.size]
    zeros = torch.zeros(probe.size, *probe.shape, dtype=outputs.dtype, device=outputs.device)
    zero, one = (float(probe.gradient(outputs, zeros + y).mean()) for y in (0.0, 1.0))
    samples = knowledge.num_samples
    # A step's gradient is of its samples, and the update's is the mean over the steps.
    mean = entry / probe.per_step
    number = round(samples * (mean - zero) / (one - zero))
    kind = torch.long if probe.whole else next(knowledge.model.parameters()).dtype
    labels = torch.zeros(samples, *probe.shape, dtype=kind)
    labels[samples - min(samples, max(0, number)) :] = 1
    return labels


# ---------------------------------------------------------------------------------- what they share


def _layer(model: nn.Module, knowledge: Knowledge, probe: LossProbe, *, bias: bool) -> str:
    """Name of the layer whose gradient tells the labels."""
    wanted = knowledge.num_classes
    layer = probe.layer
    fits = layer is not None and (
        probe.kind != "classes" or wanted is None or probe.outputs == wanted
    )
    if (
        fits
        and layer is not None
        and (not bias or isinstance(model.get_submodule(layer).bias, Tensor))
    ):
        return layer
    number = "" if wanted is None or probe.kind != "classes" else f"{wanted} outputs "
    other = (
        ", or try another method, in a run (`victims.labels: row_minima`)"
        if fits and probe.kind == "classes"
        else ""
    )
    raise BadInput(
        f"Expected a linear layer with {'bias and ' * bias}{number}to recover labels from, found "
        f"none in {type(model).__name__}: give the labels ({GIVE}){other}."
    )


def _require_moved(gradient: Tensors, name: str) -> None:
    """Labels are never read from a parameter of which the update tells nothing."""
    require(
        name in gradient and bool(gradient[name].any()),
        f"Expected the update to tell of `{name}`, to recover labels from, but it did not move or "
        f"did not come: give the labels ({GIVE}).",
    )


def _output_of_one_sample(model: nn.Module, gradient: Tensors, layer: str) -> Tensor | None:
    """The layer's output for the only sample, in float64, from the gradient of weight and bias."""
    weight, bias = (gradient[joined(layer, part)].double().cpu() for part in ("weight", "bias"))
    if len(bias) == 1:
        # One row always fits; that it does is no evidence.
        features = weight[0] / bias[0] if float(bias[0].abs()) > 0 else None
    else:
        known = linear_input(weight, bias)
        features = known.value if known.trusted else None
    if features is None:
        return None
    module = model.get_submodule(layer)
    assert isinstance(module, nn.Linear)
    with torch.no_grad():
        return module.weight.double().cpu() @ features + module.bias.double().cpu()


def _predictions(knowledge: Knowledge, probe: LossProbe) -> Tensor:
    """Mean predicted probabilities for dummy samples, ``(classes,)``."""
    return probe.output_of(probe.dummies(DUMMIES)).double().cpu().softmax(dim=-1).mean(dim=0)
