"""Features of a batch behind convolutions, against the forward pass."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks.exact_batches.features import features_of, gradient_of
from fedleak.attacks.exact_batches.network import Network, read_head
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from tests.attacks.exact_batches.batches import SHAPE, cross_entropy, smooth_images


class Convolved(NamedTuple):
    """A batch of a small convolutional network."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    gradient: Tensors
    knowledge: Knowledge

    @property
    def head(self) -> Network:
        found = read_head(self.knowledge)
        assert isinstance(found, Network), found
        return found


def convolved(number: int, *, pool: bool = False, kind: torch.dtype = torch.float64) -> Convolved:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), *[nn.MaxPool2d(2)] * pool, nn.Flatten()]
        size = 64 if pool else 256
        model = nn.Sequential(*before, nn.Linear(size, 80), nn.ReLU(), nn.Linear(80, 5)).to(kind)
        labels = torch.randint(5, (number,))
    inputs = (smooth_images(number, 0).to(kind) / 255 - 0.5) / 0.25
    names, parameters = zip(*model.named_parameters(), strict=True)
    values = torch.autograd.grad(cross_entropy(model, (inputs, labels)), parameters)
    knowledge = Knowledge(
        model, SHAPE, 5, mean=(0.5,), std=(0.25,), num_samples=number, loss=cross_entropy
    )
    return Convolved(model, inputs, labels, dict(zip(names, values, strict=True)), knowledge)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_features_and_gradients_of_each(kind: torch.dtype, pool: bool) -> None:
    batch = convolved(6, pool=pool, kind=kind)
    head = batch.head
    found = features_of(
        head, batch.gradient, 6, torch.Generator().manual_seed(0), starts=200, noise=None,
        progress=lambda number: None,
    )  # fmt: skip
    model = batch.model.double()
    first = next(at for at, layer in enumerate(model) if isinstance(layer, nn.Linear))
    true = model[:first](batch.inputs.double()).detach()
    error, at = torch.cdist(found.inputs, true).min(dim=1)
    assert sorted(at.tolist()) == list(range(6))
    assert torch.equal(found.labels, batch.labels[at])
    assert bool((error <= found.bounds + 1e-9).all())
    assert float((error / true.norm(dim=1)[at]).max()) < (1e-4 if kind == torch.float32 else 1e-9)
    loss = cross_entropy(model, (batch.inputs.double(), batch.labels))
    values = torch.autograd.grad(loss, list(model.parameters()))
    whole = dict(zip(batch.gradient, values, strict=True))
    for name in (f"{layer}.{part}" for layer in head.names for part in ("weight", "bias")):
        own = sum(gradient_of(head, found, number)[name] for number in range(6))
        torch.testing.assert_close(own, whole[name], rtol=0, atol=1e-5)


def test_a_single_linear_layer_is_no_head() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    facts = Knowledge(model, SHAPE, 3, num_samples=4, loss=cross_entropy)
    assert "no hidden layer" in str(read_head(facts))


def test_a_head_begins_behind_what_is_no_relu() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    found = read_head(Knowledge(model, SHAPE, 3, num_samples=4, loss=cross_entropy))
    assert isinstance(found, Network)
    assert found.names == ("3", "5")
