"""Batches that are read whole by rgap and exact_nra."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedleak.attacks import RGAP, ExactNRA
from fedleak.updates.update import InterceptedUpdate
from tests.attacks.exact_batches.batches import Batch, make_batch, make_noisy_batch
from tests.attacks.exact_batches.test_features import convolved

READ = "read by exact_batch, with no optimisation"
QUICK = {"nra_iterations": 2, "image_iterations": 30, "matching_steps": 1}


def nearest(inputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    flat = inputs.flatten(1).double()
    return torch.cdist(flat, batch.inputs.flatten(1).double()).min(dim=1)


def test_rgap_reads_a_batch_of_a_perceptron() -> None:
    batch = make_batch((64, 90, 70, 5), 8, mean=0.5, deviation=0.25)
    (found,) = RGAP(**QUICK)([batch.update], batch.knowledge)
    error, at = nearest(found.inputs, batch)
    assert float(error.max()) < 1e-6
    assert torch.equal(found.labels, batch.labels[at])
    assert READ in found.findings
    assert bool(found.error_bounds.isfinite().all())


def test_exact_nra_reads_a_batch_with_its_noise() -> None:
    noisy = make_noisy_batch(8, width=100, size=30)
    (found,) = ExactNRA(**QUICK)([noisy.batch.update], noisy.batch.knowledge)
    error, at = nearest(found.inputs, noisy.batch)
    assert sorted(at.tolist()) == list(range(8))
    assert float(error.max()) < 1e-6
    torch.testing.assert_close(found.noise["bottleneck.noise"], noisy.noise[at], atol=1e-5, rtol=0)
    assert READ in found.findings


@pytest.mark.parametrize("told", [True, False])
def test_images_behind_a_convolution(told: bool) -> None:
    batch = convolved(6)
    update = InterceptedUpdate.of(batch.model, gradient=batch.gradient, num_examples=6)
    facts = replace(batch.knowledge, labels=batch.labels if told else None)
    (found,) = RGAP(**QUICK)([update], facts)
    own = Batch(batch.model, batch.inputs, batch.labels, batch.gradient, facts)
    error, at = nearest(found.inputs, own)
    assert sorted(at.tolist()) == list(range(6))
    assert float(error.max()) < 1e-5
    assert torch.equal(found.labels, batch.labels[at])
    assert not told or torch.equal(found.labels, batch.labels)
    assert found.findings[0].startswith("features and labels of all 6 samples")
    assert found.explained > 0.999


def test_a_loss_that_is_a_sum_and_was_told_as_a_mean_gives_no_whole_batch() -> None:
    """Each sample's part is that of so many equal ones, which are not in the batch."""
    batch = convolved(6)
    gradient = {name: 6 * value for name, value in batch.gradient.items()}
    update = InterceptedUpdate.of(batch.model, gradient=gradient, num_examples=6)
    (found,) = RGAP(**QUICK)([update], batch.knowledge)
    assert not any("features and labels of all" in text for text in found.findings)


def test_images_behind_max_pooling_agree_with_the_features() -> None:
    batch = convolved(2, pool=True)
    update = InterceptedUpdate.of(batch.model, gradient=batch.gradient, num_examples=2)
    (found,) = RGAP(**QUICK)([update], batch.knowledge)
    assert found.findings[0].startswith("features and labels of all 2 samples")
    assert any("smooth image" in text for text in found.findings)
    own = Batch(batch.model, batch.inputs, batch.labels, batch.gradient, batch.knowledge)
    error, at = nearest(found.inputs, own)
    assert torch.equal(found.labels, batch.labels[at])
    guess = batch.inputs.flatten(1).double().norm(dim=1)
    assert bool((error < guess[at]).all())


def test_a_batch_with_noise_in_its_gradient_is_left_to_the_others() -> None:
    batch = convolved(3)
    gradient = {
        name: value + 0.05 * value.abs().mean() * torch.randn(value.shape, dtype=value.dtype)
        for name, value in batch.gradient.items()
    }
    update = InterceptedUpdate.of(batch.model, gradient=gradient, num_examples=3)
    (found,) = RGAP(**QUICK)([update], batch.knowledge)
    assert not any("features and labels of all" in text for text in found.findings)
    assert isinstance(batch.model[0], nn.Conv2d)


def test_the_sum_of_two_clients_is_read_as_one_batch() -> None:
    """Behind secure aggregation: their mean is the gradient of all samples together."""
    batch = make_batch((64, 90, 70, 5), 8, mean=0.5, deviation=0.25)
    facts = replace(batch.knowledge, clients=(3, 5))
    (found,) = RGAP(**QUICK)([batch.update], facts)
    error, at = nearest(found.inputs, batch)
    assert sorted(at.tolist()) == list(range(8))
    assert float(error.max()) < 1e-6
