from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    l1_loss,
    mse_loss,
)

from fedleak.attacks import DLG, IDLG, IGA
from fedleak.attacks.labels import METHODS, NotDetermined, recover_labels, refusal
from fedleak.data.photos import Photos
from fedleak.errors import BadInput
from fedleak.metrics import label_recovery_rate
from fedleak.models import SMLP, LeNet, Precode
from fedleak.registry import Plugin, build, class_path
from fedleak.updates.knowledge import Knowledge, LabelRecovery
from fedleak.updates.update import InterceptedUpdate
from tests.cases import (
    CLASSES,
    FIRST_OF_KIND,
    MODELS,
    ModelCase,
    Victim,
    case_victim,
    client_gradient,
    make_victim,
)


def recovered(victim) -> list[int]:
    knowledge = replace(victim.knowledge, labels=None)
    return recover_labels(victim.model, victim.update.received, knowledge).tolist()


class Head(nn.Module):
    """A classifier alone."""

    def __init__(self, features: int, classes: int, *, bias: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(features, classes, bias=bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])


def headed(features: int, samples: int, **settings: Any) -> Knowledge:
    """What is known of a classifier of three classes alone."""
    model = Head(features, 3, bias=settings.pop("bias", True))
    return Knowledge(model, (features,), 3, num_samples=samples, **settings)


def test_by_hand() -> None:
    """Three samples of classes 0, 0 and 2, all given the probabilities 0.5, 0.3 and 0.2."""
    gradient = {"head.bias": torch.tensor([0.5 - 2 / 3, 0.3, 0.2 - 1 / 3])}
    # -0.167 is the lowest and raised by 1/3 to 0.167; then -0.133, to 0.2; then 0.167, to 0.5.
    for samples, expected in ((1, [0]), (2, [0, 2]), (3, [0, 0, 2])):
        # Raised by 1 or by 1/2 instead of 1/3, no entry is taken twice.
        knowledge = headed(4, samples)
        assert recover_labels(knowledge.model, gradient, knowledge).tolist() == expected


@pytest.mark.parametrize("label", range(CLASSES))
@pytest.mark.parametrize("precode", [False, True], ids=["plain", "precode"])
@pytest.mark.parametrize("case", MODELS, ids=str)
def test_one_sample_is_always_right(case: ModelCase, precode: bool, label: int) -> None:
    victim = case_victim(case, precode=precode, labels=[label])
    assert recovered(victim) == [label]


@pytest.mark.parametrize("precode", [False, True], ids=["plain", "precode"])
@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 3, 4, 5, 6, 7], [3, 3, 3, 3], [9, 9, 2, 2], [0, 0, 0, 5, 7, 7]], ids=str
)
def test_batches_on_an_untrained_perceptron(labels: list[int], precode: bool) -> None:
    """Its predictions are nearly even over 10 classes, so that repeats can be counted."""
    torch.manual_seed(0)
    shape = (1, 8, 8)
    bottleneck = Precode(8) if precode else None
    model = SMLP(input_shape=shape, num_classes=10, width=64, precode=bottleneck)
    right = 0
    for client in range(10):
        victim = make_victim(
            model, shape, batch=len(labels), labels=labels, client=client, num_classes=10
        )
        found = recovered(victim)
        assert found == recovered(victim)
        assert found == sorted(found)
        right += found == sorted(labels)
    assert right >= 8


def test_an_attack_uses_them() -> None:
    for case in FIRST_OF_KIND:
        attack = case.make(**({"iterations": 1} if case.kind.iterative else {}))
        if attack.restores_labels:
            continue  # it has a way of its own
        for labels in ([3], [3, 1]):
            settings = {"precode": case.precode, "batch": len(labels), "labels": labels}
            victim = case_victim(MODELS[0], **settings)
            blind = replace(victim.knowledge, labels=None)
            if len(labels) == 1 or attack.refuses(blind) is None:
                (result,) = attack([victim.update], blind)
                assert sorted(result.labels.tolist()) == sorted(labels)


def test_gradient_stays_as_it_was() -> None:
    victim = case_victim(MODELS[0], precode=False, batch=3)
    before = victim.update.received["classifier.bias"].clone()
    recovered(victim)
    assert torch.equal(before, victim.update.received["classifier.bias"])


def of_logits(criterion: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """A loss of logits and labels as one of a batch."""
    return lambda model, batch: criterion(model(batch[0]), batch[1])


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 5)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False)),
        nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten()),
    ],
    ids=["other size", "no bias", "no linear layer"],
)
def test_no_classifier(model: nn.Module) -> None:
    knowledge = Knowledge(model, (1, 8, 8), 4, num_samples=1, loss=of_logits(cross_entropy))
    gradient = {"1.weight": torch.ones(4, 64)}
    with pytest.raises(BadInput, match=r"bias and 4 outputs .* found none in Sequential: give the"):
        recover_labels(model, gradient, knowledge)


# ---------------------------------------------------------------------------- the methods by name

METHOD_NAMES = ["bias_counts", "idlg", "row_minima"]
PLAIN_CASES = [case for case in MODELS if case.name in ("smlp", "lenet", "lenetr")]


def found_by(method: str, victim: Victim) -> list[int]:
    knowledge = replace(victim.knowledge, labels=None, label_recovery=method)
    return recover_labels(victim.model, victim.update.received, knowledge).tolist()


class Headless(nn.Module):
    """One hidden layer, and a classifier that has no bias unless it is asked for."""

    def __init__(self, activation: nn.Module, classes: int = 4, *, bias: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), activation)
            self.head = nn.Linear(16, classes, bias=bias)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(self.head(self.hidden(batch[0])), batch[1])


def headless_victim(activation: nn.Module, labels: list[int], classes: int = 4) -> Victim:
    model = Headless(activation, classes)
    return make_victim(model, (1, 8, 8), batch=len(labels), labels=labels, num_classes=classes)


def test_the_methods_are_those_that_can_be_chosen() -> None:
    assert sorted(METHODS) == sorted(METHOD_NAMES) == sorted(get_args(LabelRecovery))


@pytest.mark.parametrize("label", range(CLASSES))
@pytest.mark.parametrize("case", PLAIN_CASES, ids=str)
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_is_right_about_one_sample(method: str, case: ModelCase, label: int) -> None:
    assert found_by(method, case_victim(case, precode=False, labels=[label])) == [label]


@pytest.mark.parametrize("labels", [[0, 1], [3, 1], [2, 0, 3], [3, 2, 1, 0]], ids=str)
@pytest.mark.parametrize("case", PLAIN_CASES, ids=str)
@pytest.mark.parametrize("method", ["bias_counts", "row_minima"])
def test_batches_of_distinct_labels(method: str, case: ModelCase, labels: list[int]) -> None:
    victim = case_victim(case, precode=False, batch=len(labels), labels=labels)
    assert found_by(method, victim) == sorted(labels)


@pytest.mark.parametrize("labels", [[2, 2], [1, 1, 3], [0, 0, 0, 0], [3, 0, 3, 0]], ids=str)
@pytest.mark.parametrize("case", PLAIN_CASES, ids=str)
def test_repeated_labels_are_for_the_bias_alone(case: ModelCase, labels: list[int]) -> None:
    """The other method finds none twice, so that of such a batch it cannot but be wrong."""
    victim = case_victim(case, precode=False, batch=len(labels), labels=labels)
    assert found_by("bias_counts", victim) == sorted(labels)
    found = found_by("row_minima", victim)
    assert len(set(found)) == len(labels) > len(set(labels))


def test_counts_are_lost_where_predictions_are_confident() -> None:
    """What the bias's gradient says of a sample fades as the model learns it."""
    model = Headless(nn.ReLU(), bias=True)
    even = make_victim(model, (1, 8, 8), batch=3, labels=[0, 0, 1])
    assert found_by("bias_counts", even) == [0, 0, 1]
    with torch.no_grad():
        model.head.bias[0] += 20
    confident = make_victim(model, (1, 8, 8), batch=3, labels=[0, 0, 1])
    assert found_by("bias_counts", confident) != [0, 0, 1]


BATCH = torch.tensor([0, 2, 2, 3, 2, 1])
CRITERIA = {
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "factor": lambda outputs, labels: -3 * cross_entropy(outputs, labels),
    "smoothing": nn.CrossEntropyLoss(label_smoothing=0.3),
    "weights": nn.CrossEntropyLoss(torch.tensor([1.0, 0.5, 3.0, 2.0])),
    "weights, sum": nn.CrossEntropyLoss(torch.tensor([1.0, 0.5, 3.0, 2.0]), reduction="sum"),
    "all": nn.CrossEntropyLoss(torch.tensor([1.0, 0.5, 3.0, 2.0]), label_smoothing=0.2),
}


def of_network(
    criterion: Callable[[Tensor, Tensor], Tensor], labels: Tensor, outputs: int = 4
) -> tuple[Knowledge, dict[str, Tensor]]:
    """What is known of a client with that loss, and its gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Sigmoid(), nn.Linear(32, outputs))
    inputs = torch.randn(len(labels), 20)
    loss = criterion(model(inputs), labels)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    facts = Knowledge(model, (20,), num_samples=len(labels), loss=of_logits(criterion))
    return facts, dict(zip(dict(model.named_parameters()), gradient, strict=True))


@pytest.mark.parametrize("labels", [BATCH, *BATCH[1:].split(1)], ids=str)
@pytest.mark.parametrize("name", CRITERIA)
def test_other_cross_entropies(name: str, labels: Tensor) -> None:
    facts, gradient = of_network(CRITERIA[name], labels)
    found = recover_labels(facts.model, gradient, facts)
    assert found.tolist() == sorted(labels.tolist())


@pytest.mark.parametrize("label", range(4))
def test_a_loss_that_is_no_cross_entropy(label: int) -> None:
    facts, gradient = of_network(nn.MultiMarginLoss(), torch.tensor([label]))
    assert recover_labels(facts.model, gradient, facts).tolist() == [label]
    facts, gradient = of_network(nn.MultiMarginLoss(), torch.tensor([label, 1]))
    with pytest.raises(BadInput, match=r"cross entropy .* recover the labels of 2 samples"):
        recover_labels(facts.model, gradient, facts)


def test_a_confident_sample_under_label_smoothing() -> None:
    """Its own entry is not the lowest: the sign rule would be wrong."""
    facts, gradient = of_network(CRITERIA["smoothing"], torch.tensor([2]))
    with torch.no_grad():
        facts.model[2].bias[2] += 5
    inputs = torch.ones(1, 20)
    loss = facts.loss(facts.model, (inputs, torch.tensor([2])))
    values = torch.autograd.grad(loss, list(facts.model.parameters()))
    gradient = dict(zip(gradient, values, strict=True))
    assert int(gradient["2.bias"].argmin()) != 2
    assert recover_labels(facts.model, gradient, facts).tolist() == [2]


def test_labels_of_zero_and_one() -> None:
    for many in ([0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1], [1], [0]):
        labels = torch.tensor(many)
        facts, gradient = of_network(
            lambda z, y: binary_cross_entropy_with_logits(z.squeeze(1), y.to(z)), labels, 1
        )
        found = recover_labels(facts.model, gradient, facts)
        assert (found.tolist(), found.dtype) == (sorted(many), torch.long)
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    facts, gradient = of_network(binary_cross_entropy_with_logits, labels, 3)
    assert torch.equal(recover_labels(facts.model, gradient, facts), labels)
    facts, gradient = of_network(binary_cross_entropy_with_logits, labels.repeat(2, 1), 3)
    with pytest.raises(NotDetermined, match="of 2 samples that the gradient determines"):
        recover_labels(facts.model, gradient, facts)


@pytest.mark.parametrize("outputs", [1, 5])
def test_targets_of_a_regression(outputs: int) -> None:
    labels = torch.linspace(-2, 3, outputs)[None]
    facts, gradient = of_network(mse_loss, labels, outputs)
    found = recover_labels(facts.model, gradient, facts)
    torch.testing.assert_close(found, labels, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", [-3.0, 0.0, 5.0])
def test_a_target_whose_side_alone_acts(target: float) -> None:
    """Of an absolute error, the gradient is that of every target on one side of the output."""
    torch.manual_seed(0)
    model = nn.Linear(6, 1)  # a layer alone, whose parameters have no prefix
    inputs, wanted = torch.randn(1, 6), torch.tensor([target])

    def loss(net: nn.Module, batch: Any) -> Tensor:
        return l1_loss(net(batch[0])[:, 0], batch[1])

    facts = Knowledge(model, (6,), num_samples=1, loss=loss)
    gradients = torch.autograd.grad(loss(model, (inputs, wanted)), list(model.parameters()))
    found = recover_labels(model, dict(zip(("weight", "bias"), gradients, strict=True)), facts)
    output = float(model(inputs))
    assert (float(found) > output) == (target > output)


def test_a_number_of_classes_that_nothing_tells() -> None:
    """The loss calls the model twice, so that no layer's output is the logits."""
    torch.manual_seed(0)
    model, inputs, labels = nn.Linear(6, 3), torch.randn(1, 6), torch.tensor([2])

    def loss(net: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(net(batch[0]) + 0.1 * net(batch[0]).square(), batch[1])

    gradients = torch.autograd.grad(loss(model, (inputs, labels)), list(model.parameters()))
    received = dict(zip(("weight", "bias"), gradients, strict=True))
    update = InterceptedUpdate(1, 0, "fedsgd", 1, "net", dict(model.state_dict()), received)
    facts = Knowledge(model, (6,), num_samples=1, loss=loss)
    with pytest.raises(BadInput, match="Expected `num_classes` where labels are searched"):
        DLG(iterations=2)([update], facts)
    (found,) = DLG(iterations=2)([update], replace(facts, num_classes=3))
    assert found.labels.shape == (1,)


@pytest.mark.parametrize(("name", "settings"), [("analytic", {}), ("dlg", {"iterations": 15})])
def test_a_layer_alone_is_a_model(name: str, settings: dict[str, Any]) -> None:
    """A logistic regression: its parameters have no prefix."""
    torch.manual_seed(0)
    model, inputs, labels = nn.Linear(6, 3), torch.randn(1, 6), torch.tensor([2])
    loss = of_logits(cross_entropy)
    gradients = torch.autograd.grad(loss(model, (inputs, labels)), list(model.parameters()))
    received = dict(zip(("weight", "bias"), gradients, strict=True))
    update = InterceptedUpdate(1, 0, "fedsgd", 1, "net", dict(model.state_dict()), received)
    attack = build("attacks", Plugin(class_path("attacks", name), settings))
    facts = Knowledge(model, (6,), num_samples=1, loss=loss)
    (found,) = attack([update], facts)
    torch.testing.assert_close(found.inputs, inputs, rtol=1e-4, atol=1e-4)
    assert found.labels.tolist() == [2]


def test_searched_targets_of_a_batch() -> None:
    """Two samples have more numbers than one gradient of the bias."""
    labels = torch.tensor([[0.3, -1.0], [2.0, 0.4]])
    facts, gradient = of_network(mse_loss, labels, 2)
    sent = {name: value.detach() for name, value in facts.model.state_dict().items()}
    update = InterceptedUpdate(1, 0, "fedsgd", 2, "case", sent, gradient)
    attack = IDLG(iterations=19)
    (found,) = attack([update], facts)
    assert found.explained > 0.999
    assert "the labels were searched together with the inputs" in found.findings
    assert {tuple(row) for row in found.labels.round(decimals=1).tolist()} == {
        tuple(row) for row in labels.round(decimals=1).tolist()
    }


@pytest.mark.parametrize("left", ["2.bias", "2.weight"])
def test_labels_are_never_read_from_what_did_not_move(left: str) -> None:
    facts, gradient = of_network(cross_entropy, torch.tensor([3]))
    part = gradient | {left: torch.zeros_like(gradient[left])}
    if left == "2.weight":
        facts = replace(facts, label_recovery="row_minima")
    with pytest.raises(BadInput, match=f"the update to tell of `{left}`, .* did not move"):
        recover_labels(facts.model, part, facts)


@pytest.mark.parametrize("label", range(4))
def test_without_a_bias(label: int) -> None:
    relu = headless_victim(nn.ReLU(), [label])
    assert found_by("idlg", relu) == [label]
    assert found_by("row_minima", relu) == [label]
    with pytest.raises(BadInput, match=r"layer with bias and 4 .*\(`victims.labels: row_minima`"):
        found_by("bias_counts", relu)
    # The inner products of rows do not care about the sign of the features.
    assert found_by("idlg", headless_victim(nn.Tanh(), [label])) == [label]


def test_without_a_bias_distinct_labels() -> None:
    assert found_by("row_minima", headless_victim(nn.Sigmoid(), [3, 1, 0])) == [0, 1, 3]


@pytest.mark.parametrize("label", [0, 1])
def test_two_classes_without_a_bias(label: int) -> None:
    """Their rows are opposite: which is the label's, only nonnegative features tell."""
    assert found_by("idlg", headless_victim(nn.ReLU(), [label], classes=2)) == [label]
    with pytest.raises(BadInput, match=r"nonnegative features, or more than 2 classes .* Headless"):
        found_by("idlg", headless_victim(nn.Tanh(), [label], classes=2))


def test_rows_by_hand() -> None:
    """Features (1, 4) of class 1 and (2, 1) of class 2, predictions 0.5, 0.3 and 0.2 of both."""
    rows = torch.tensor([[1.5, 2.5], [-0.7 + 0.6, -2.8 + 0.3], [0.2 - 1.6, 0.8 - 0.8]]) / 2
    # The minima are 0.75, -1.25 and -0.7.
    for samples, expected in ((1, [1]), (2, [1, 2]), (3, [0, 1, 2])):
        facts = headed(2, samples, bias=False, label_recovery="row_minima")
        assert recover_labels(facts.model, {"head.weight": rows}, facts).tolist() == expected


def test_features_of_both_signs_mislead_the_minima() -> None:
    """One sample of class 1 with features (-9, 1), as a bottleneck may give them."""
    rows = torch.tensor([0.3, -0.7, 0.4]).outer(torch.tensor([-9.0, 1.0]))
    found = {}
    for method in ("idlg", "row_minima"):
        facts = headed(2, 1, bias=False, label_recovery=method)
        found[method] = recover_labels(facts.model, {"head.weight": rows}, facts).tolist()
    assert found == {"idlg": [1], "row_minima": [2]}


@pytest.mark.parametrize(
    ("method", "labels", "sentence"),
    [
        ("idlg", [0, 1], "idlg recovers the label of one sample, not of 2: try bias_counts or"),
        ("row_minima", [0, 1, 2, 3, 0], "only once and there are 5 samples of 4 classes: try"),
        ("row_minma", [0], r"Unknown label recovery `row_minma`: expected one of bias_counts, "
         r"idlg, row_minima\. Did you mean `row_minima`\?$"),
    ],
)  # fmt: skip
def test_what_a_method_cannot_do(method: str, labels: list[int], sentence: str) -> None:
    victim = case_victim(MODELS[0], precode=False, batch=len(labels), labels=labels)
    with pytest.raises(BadInput, match=sentence):
        found_by(method, victim)


def test_refusals_of_batches() -> None:
    for method in METHOD_NAMES:
        assert refusal(method, num_samples=1, num_classes=2) is None
    assert refusal("bias_counts", num_samples=9, num_classes=2) is None
    assert refusal("row_minima", num_samples=2, num_classes=2) is None
    assert "try bias_counts" in str(refusal("row_minima", num_samples=3, num_classes=2))
    assert "not of 2" in str(refusal("idlg", num_samples=2, num_classes=2))


def test_an_attack_uses_the_method_that_is_named() -> None:
    """The model has no bias, with which the default method can do nothing."""
    victim = headless_victim(nn.ReLU(), [3, 1])
    blind = replace(victim.knowledge, labels=None)
    attack = IGA(iterations=1)
    (result,) = attack([victim.update], replace(blind, label_recovery="row_minima"))
    assert result.labels.tolist() == [1, 3]
    with pytest.raises(BadInput, match="linear layer with bias and 4 outputs"):
        attack([victim.update], blind)


# ------------------------------------------------------------------------------------- the rates


def photo_rates(
    batch: int, *, distinct: bool, batches: int = 100
) -> dict[str, tuple[float, float]]:
    """Recovery from an untrained LeNet's gradients of random photos of the training set.

    Returns:
        Method -> share of the labels that it recovers, and of the batches that it recovers whole.
    """
    data = Photos()
    data.setup()
    truth = data.train_set.labels.numpy()
    draw = np.random.default_rng(batch)
    rates: dict[str, list[float]] = {name: [] for name in METHOD_NAMES}
    for number in range(batches):
        classes = draw.permutation(8)[:batch] if distinct else draw.integers(0, 8, batch)
        chosen = [int(draw.choice(np.flatnonzero(truth == label))) for label in classes]
        images, labels = data.train_set.batch(chosen)
        with torch.random.fork_rng():
            torch.manual_seed(number)
            model = LeNet(input_shape=(3, 32, 32), num_classes=8)
        gradient, _ = client_gradient(model, images, labels)
        for method in METHOD_NAMES:
            if refusal(method, num_samples=batch, num_classes=8) is None:
                facts = Knowledge(model, (3, 32, 32), 8, num_samples=batch, label_recovery=method)
                found = recover_labels(model, gradient, facts)
                rates[method].append(label_recovery_rate(labels, found))
    return {
        name: (float(np.mean(found)), float(np.mean([rate == 1 for rate in found])))
        for name, found in rates.items()
        if found
    }


@pytest.mark.slow
def test_rates_on_photos(capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for distinct in (True, False):
        for batch in (1, 4, 8):
            rates = photo_rates(batch, distinct=distinct)
            kind = "distinct" if distinct else "random"
            for name, (share, whole) in rates.items():
                lines.append(f"{kind:8} batch {batch} {name:11} {share:.3f} {whole:.3f}")
            assert ("idlg" in rates) == (batch == 1)
            if batch == 1:
                assert set(rates.values()) == {(1.0, 1.0)}
            if distinct and batch == 8:
                # All eight classes: there is nothing to be wrong about.
                assert rates["row_minima"] == (1.0, 1.0)
            if not distinct and batch > 1:
                assert rates["bias_counts"][0] > rates["row_minima"][0]
    with capsys.disabled():
        print("\nlabels batch method recovered whole-batches", *lines, sep="\n")
