"""Samples and noise behind a bottleneck, one after the other."""

import pytest
import torch

from fedleak.attacks.exact_batches.noisy_recovery import (
    NoisyRecovery,
    NoisyRemainder,
    encoder_signal,
)
from fedleak.attacks.exact_batches.pixel_levels import pixel_levels
from fedleak.attacks.exact_batches.random_head import RandomHead, read_random_head
from tests.attacks.exact_batches.batches import NoisyBatch, make_noisy_batch


def recovery_of(noisy: NoisyBatch, *, levels: bool = True, starts: int = 6) -> NoisyRecovery:
    batch = noisy.batch
    head = read_random_head(batch.knowledge)
    assert isinstance(head, RandomHead), head
    low, high = (bound.double().expand(1, 8, 8).flatten() for bound in batch.knowledge.bounds)
    generator = torch.Generator().manual_seed(0)
    gradients = head.network.gradients(batch.gradient, head=True)
    return NoisyRecovery(
        head, NoisyRemainder(head.network, gradients, len(batch.labels), generator), (low, high),
        pixel_levels(batch.knowledge, head.network.unit) if levels else None,
        generator, starts, lambda found: None,
    )  # fmt: skip


def signals_of(noisy: NoisyBatch, head: RandomHead) -> torch.Tensor:
    inputs = noisy.batch.inputs.flatten(1).double()
    encoded = head.network.apply(head.network.hidden, head.network.trace(inputs).inputs[-1])
    return head.signals(encoded, noisy.noise.double(), noisy.batch.labels)


@pytest.mark.parametrize("hidden", [1, 2, 3])
@pytest.mark.parametrize("beta", [0.0, 1e-3])
def test_the_signal_of_one_sample_of_many(hidden: int, beta: float) -> None:
    noisy = make_noisy_batch(hidden=hidden, beta=beta)
    recovery = recovery_of(noisy)
    true = signals_of(noisy, recovery.head)
    for at, inputs in enumerate(noisy.batch.inputs.flatten(1)):
        found = encoder_signal(recovery.remainder, inputs[None])
        assert found is not None
        torch.testing.assert_close(found[0], true[at], rtol=1e-6, atol=1e-12)


def test_with_too_many_samples_there_is_no_signal() -> None:
    recovery = recovery_of(make_noisy_batch(40, size=30))
    assert encoder_signal(recovery.remainder, torch.zeros(1, 64).double()) is None


@pytest.mark.parametrize("levels", [True, False])
@pytest.mark.parametrize("hidden", [1, 2])
def test_a_whole_batch_with_its_noise(hidden: int, levels: bool) -> None:
    noisy = make_noisy_batch(8, width=100, size=30, hidden=hidden)
    recovery = recovery_of(noisy, levels=levels)
    recovery.run()
    found = recovery.remainder.found
    error, at = torch.cdist(found.inputs, noisy.batch.inputs.flatten(1)).min(dim=1)
    assert sorted(at.tolist()) == list(range(8))
    assert bool((error <= found.bounds + 1e-6).all())
    restored = recovery.restored()
    assert torch.equal(restored.labels, noisy.batch.labels[at])
    torch.testing.assert_close(restored.noise, noisy.noise[at], rtol=0, atol=1e-5)
    assert recovery.sources["zeros of a layer"] >= 4


def test_a_sample_that_is_left_is_alone_in_its_rows() -> None:
    recovery = recovery_of(make_noisy_batch(1), starts=0)
    recovery.run()
    assert recovery.sources == {"alone in a row": 1}


def test_nothing_is_subtracted_of_a_wrong_gradient() -> None:
    noisy = make_noisy_batch(6)
    gradient = {
        name: value + 1e-3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        for name, value in noisy.batch.gradient.items()
    }
    recovery = recovery_of(noisy._replace(batch=noisy.batch._replace(gradient=gradient)))
    recovery.run()
    assert len(recovery.remainder.found) == 0
