"""The share that is explained, against cases whose answer is known."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedleak.attacks.base import Reconstruction
from fedleak.attacks.explained import explained_share
from fedleak.models.noise import inject
from fedleak.updates.knowledge import batch_loss
from tests.cases import LIGHT_MODELS, ModelCase, Victim, case_victim, several_steps

every_model = pytest.mark.parametrize("case", LIGHT_MODELS, ids=lambda case: case.name)
both = pytest.mark.parametrize("precode", [False, True])


def true_reconstruction(victim: Victim) -> Reconstruction:
    return Reconstruction(victim.truth.inputs, victim.truth.labels, victim.truth.noise)


@both
@every_model
def test_the_truth_explains_all(case: ModelCase, precode: bool) -> None:
    victim = case_victim(case, precode=precode and case.bottleneck is not None)
    before = {n: v.clone() for n, v in victim.knowledge.model.state_dict().items()}
    share = explained_share(victim.update, victim.knowledge, true_reconstruction(victim))
    assert share == pytest.approx(1, abs=1e-6)
    for name, value in victim.knowledge.model.state_dict().items():
        assert torch.equal(value, before[name])


@both
@every_model
def test_something_else_does_not(case: ModelCase, precode: bool) -> None:
    """Not even where any image with the right label has nearly the client's gradient."""
    victim = case_victim(case, precode=precode and case.bottleneck is not None)
    truth = true_reconstruction(victim)
    other = replace(truth, inputs=torch.randn_like(truth.inputs))
    near = replace(truth, inputs=truth.inputs + 0.03 * torch.randn_like(truth.inputs))
    grey = replace(truth, inputs=torch.zeros_like(truth.inputs))
    broken = replace(truth, inputs=torch.full_like(truth.inputs, torch.nan))
    shares = [explained_share(victim.update, victim.knowledge, it) for it in (other, near)]
    assert shares[0] < 0.3
    assert shares[1] > 0.6
    assert explained_share(victim.update, victim.knowledge, grey) == 0
    assert explained_share(victim.update, victim.knowledge, broken) == 0


def test_wrong_labels_explain_nothing() -> None:
    victim = case_victim(LIGHT_MODELS[0], precode=True)
    truth = true_reconstruction(victim)
    wrong = replace(truth, labels=(truth.labels + 1) % victim.knowledge.num_classes)
    assert explained_share(victim.update, victim.knowledge, wrong) < 0.1


def test_a_known_share() -> None:
    """With as much added to the update as it differs from the guess's, half of it is explained."""
    victim = case_victim(LIGHT_MODELS[0], precode=True)
    truth = true_reconstruction(victim)
    own = flat(victim, truth)
    guess = flat(victim, replace(truth, inputs=torch.zeros_like(truth.inputs)))
    told = own - guess
    other = torch.randn(told.shape, generator=torch.Generator().manual_seed(0)).double()
    other -= told * (other @ told) / (told @ told)
    mixed = own + other * told.norm() / other.norm()
    received = victim.update.received
    parts = mixed.split([value.numel() for value in received.values()])
    changed = {
        name: part.reshape(value.shape)
        for (name, value), part in zip(received.items(), parts, strict=True)
    }
    share = explained_share(replace(victim.update, received=changed), victim.knowledge, truth)
    assert share == pytest.approx(0.5, abs=1e-6)


def flat(victim: Victim, found: Reconstruction) -> Tensor:
    """The gradient of a reconstruction by plain autograd, in float64."""
    model = copy.deepcopy(victim.knowledge.model).double()
    noise = {name: value.double() for name, value in found.noise.items()}
    with inject(model, noise):
        loss = batch_loss(model, (found.inputs.double(), found.labels))
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([value.flatten() for value in gradient])


@pytest.mark.parametrize("epochs", [1, 2])
def test_several_steps(epochs: int) -> None:
    victim = several_steps(case_victim(LIGHT_MODELS[0], precode=True), batch_size=1, epochs=epochs)
    share = explained_share(victim.update, victim.knowledge, true_reconstruction(victim))
    assert share == pytest.approx(1, abs=1e-4)
