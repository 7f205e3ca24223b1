from dataclasses import replace

import pytest
import torch
from torch import nn

from fedleak.attacks.labels import recover_labels
from fedleak.errors import BadInput
from fedleak.models import SMLP, Precode
from tests.cases import ATTACKS, CLASSES, MODELS, ModelCase, case_victim, make_victim


def recovered(victim) -> list[int]:
    knowledge = replace(victim.knowledge, labels=None)
    return recover_labels(victim.model, victim.update.received, knowledge).tolist()


def test_by_hand() -> None:
    """Three samples of classes 0, 0 and 2, all given the probabilities 0.5, 0.3 and 0.2."""
    gradient = {"head.bias": torch.tensor([0.5 - 2 / 3, 0.3, 0.2 - 1 / 3])}
    # -0.167 is the lowest and raised by 1/3 to 0.167; then -0.133, to 0.2; then 0.167, to 0.5.
    victim = case_victim(MODELS[0], precode=False)
    holder = nn.ModuleDict({"head": nn.Linear(4, 3)})
    for samples, expected in ((1, [0]), (2, [0, 2]), (3, [0, 0, 2])):
        # Raised by 1 or by 1/2 instead of 1/3, no entry is taken twice.
        knowledge = replace(victim.knowledge, num_classes=3, num_samples=samples)
        assert recover_labels(holder, gradient, knowledge).tolist() == expected


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
    for case in ATTACKS:
        victim = case_victim(MODELS[0], precode=True, batch=2, labels=[3, 1])
        blind = replace(victim.knowledge, labels=None)
        (result,) = case.make(iterations=1)([victim.update], blind)
        assert result.labels.tolist() == [1, 3]


def test_gradient_stays_as_it_was() -> None:
    victim = case_victim(MODELS[0], precode=False, batch=3)
    before = victim.update.received["classifier.bias"].clone()
    recovered(victim)
    assert torch.equal(before, victim.update.received["classifier.bias"])


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(3, 5)),
        nn.Sequential(nn.Linear(3, 4, bias=False)),
        nn.Conv2d(1, 4, 3),
    ],
    ids=["other size", "no bias", "no linear layer"],
)
def test_no_classifier(model: nn.Module) -> None:
    knowledge = replace(case_victim(MODELS[0], precode=False).knowledge, labels=None)
    name = type(model).__name__
    with pytest.raises(BadInput, match=f"bias and 4 outputs .* found none in {name}: give the"):
        recover_labels(model, {}, knowledge)
