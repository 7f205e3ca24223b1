"""The gradient at an encoder's output against autograd, noise from it, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.exact_batches.random_head import RandomHead, read_random_head
from fedleak.models import SMLP, Precode
from fedleak.models.noise import DropoutNoise, inject
from fedleak.updates.knowledge import Knowledge
from tests.attacks.exact_batches.batches import SHAPE, NoisyBatch, make_noisy_batch


def head_of(noisy: NoisyBatch) -> RandomHead:
    found = read_random_head(noisy.batch.knowledge)
    assert isinstance(found, RandomHead), found
    return found


def encoded_of(noisy: NoisyBatch) -> tuple[Tensor, Tensor]:
    """The encoder's outputs, and the gradient of the loss in them by autograd."""
    model, seen = noisy.batch.model, []
    with inject(model, {"bottleneck.noise": noisy.noise}):
        handle = model.bottleneck.encoder.register_forward_hook(
            lambda _m, _i, out: seen.append(out)
        )
        loss = model.batch_loss((noisy.batch.inputs, noisy.batch.labels))
        handle.remove()
    (gradient,) = torch.autograd.grad(loss, seen[0])
    return seen[0].detach(), gradient


@pytest.mark.parametrize("beta", [0.0, 1e-3, 2.0])
def test_signals_and_noise(beta: float) -> None:
    noisy = make_noisy_batch(beta=beta)
    head = head_of(noisy)
    encoded, gradient = encoded_of(noisy)
    found = head.signals(encoded, noisy.noise, noisy.batch.labels)
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-14)
    restored = head.restored(encoded, gradient)
    torch.testing.assert_close(restored.noise, noisy.noise, rtol=0, atol=1e-7)
    assert torch.equal(restored.labels, noisy.batch.labels)
    assert float(restored.errors.max()) < 1e-9


def test_a_mixture_of_two_signals_does_not_agree() -> None:
    noisy = make_noisy_batch()
    encoded, gradient = encoded_of(noisy)
    mixed = gradient + 0.01 * gradient.roll(1, dims=0)
    assert float(head_of(noisy).restored(encoded, mixed).errors.min()) > 1e-4


def test_no_samples_have_no_noise() -> None:
    head = head_of(make_noisy_batch())
    found = head.restored(torch.zeros(0, 40).double(), torch.zeros(0, 40).double())
    assert found.noise.shape == (0, 20)
    assert len(found.labels) == len(found.errors) == 0


def _smoothed(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    own = functional.cross_entropy(model(batch[0]), batch[1])
    return own + 0.01 * model.bottleneck.take_kl() + 1e-3 * model.classifier.weight.square().sum()


def _squared(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    own = functional.cross_entropy(model(batch[0]), batch[1])
    return own + 0.1 * model.bottleneck.take_kl().square()


@pytest.mark.parametrize(
    ("loss", "read"),
    [(_squared, False), (_smoothed, True)],
    ids=["of the divergence's square", "with a penalty on other weights"],
)
def test_other_losses(loss, read: bool) -> None:
    """Penalties on parameters behind the encoder change nothing before it."""
    facts = replace(make_noisy_batch().batch.knowledge, loss=loss)
    assert isinstance(read_random_head(facts), RandomHead) == read


def test_other_models_are_refused() -> None:
    facts = make_noisy_batch().batch.knowledge
    plain = SMLP(input_shape=SHAPE, num_classes=3, width=8)
    assert "draws other noise" in str(read_random_head(replace(facts, model=plain)))
    leaky = SMLP(input_shape=SHAPE, num_classes=5, width=8, precode=Precode(4)).double()
    leaky.features[2] = nn.LeakyReLU(0.2)
    assert "computes another" in str(read_random_head(replace(facts, model=leaky)))
    masks = SMLP(input_shape=SHAPE, num_classes=5, width=8, precode=Precode(4))
    masks.bottleneck.noise = DropoutNoise(0.5)
    assert "draws other noise" in str(read_random_head(replace(facts, model=masks)))
    assert isinstance(facts, Knowledge)
