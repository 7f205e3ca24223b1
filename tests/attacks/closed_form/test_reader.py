"""One update read in closed form: the known layer, noise, factor and features, step by step."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks.base import Problem
from fedleak.attacks.closed_form.reader import Reader, within
from fedleak.models import DMLP, SMLP, LeNet, Precode
from fedleak.models.noise import inject
from fedleak.updates.knowledge import batch_loss
from tests.cases import Victim, make_victim

SHAPE = (3, 8, 8)
SLOT = "bottleneck.noise"


def victim_of(kind: Any, **settings: Any) -> Victim:
    torch.manual_seed(0)
    model = kind(
        input_shape=SHAPE, num_classes=4, precode=Precode(bottleneck_size=16, beta=1e-3)
    ).double()
    return make_victim(model, SHAPE, **settings)


def reader_of(victim: Victim) -> Reader:
    problem = Problem(
        model=copy.deepcopy(victim.model).requires_grad_(False),
        gradient=dict(victim.update.received),
        knowledge=victim.knowledge,
        generator=torch.Generator().manual_seed(0),
        noise_shapes={name: tuple(value.shape) for name, value in victim.truth.noise.items()},
    )
    return Reader(problem, solver_iterations=2000, image_iterations=20, soft_gates=False)


def gradient_at(victim: Victim, layer: str) -> tuple[Tensor, Tensor]:
    """The client's input of a layer, and the gradient of its loss there, by autograd."""
    seen: list[Tensor] = []
    handle = victim.model.get_submodule(layer).register_forward_pre_hook(
        lambda _module, args: seen.append(args[0])
    )
    with inject(victim.model, victim.truth.noise):
        loss = batch_loss(victim.model, (victim.truth.inputs.requires_grad_(), victim.truth.labels))
    handle.remove()
    (gradient,) = torch.autograd.grad(loss, seen[0])
    return seen[0].detach(), gradient


@pytest.mark.parametrize("factor", [1.0, 0.03])
@pytest.mark.parametrize(
    ("kind", "layer"), [(SMLP, "features.1"), (LeNet, "bottleneck.encoder")], ids=str
)
def test_known_layer_of_one_sample(kind: Any, layer: str, factor: float) -> None:
    """A client that clips scales its whole gradient."""
    victim = victim_of(kind)
    for value in victim.update.received.values():
        value.mul_(factor)
    reader = reader_of(victim)
    known = reader.known_layer()
    assert known is not None
    value, gradient = gradient_at(victim, layer)
    assert known.call.name == layer
    torch.testing.assert_close(known.head.value, value)
    torch.testing.assert_close(known.gradient, factor * gradient)
    torch.testing.assert_close(known.noise[SLOT], victim.truth.noise[SLOT])
    assert known.factor == pytest.approx(factor)
    assert known.failed == known.before == []
    assert reader.findings[0].startswith(f"input of {layer} in closed form")
    found = reader.read(known, lambda _: None)
    assert found.fits
    assert found.findings[-1] == "image recovered in closed form (no optimisation)"
    torch.testing.assert_close(found.image, victim.truth.inputs.detach(), rtol=1e-4, atol=1e-4)


def test_known_layer_of_a_batch() -> None:
    victim = victim_of(DMLP, batch=2, labels=[1, 3])
    known = reader_of(victim).known_layer()
    assert known is not None
    assert known.call.name == "bottleneck.encoder"
    value, gradient = gradient_at(victim, known.call.name)
    torch.testing.assert_close(known.head.value, value, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(known.gradient, gradient, rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(known.noise[SLOT], victim.truth.noise[SLOT], rtol=1e-2, atol=1e-3)


def test_wrong_labels_cost_the_noise_but_not_the_image() -> None:
    """The gradient at the known layer follows from its bias, whatever comes after it."""
    victim = victim_of(LeNet, labels=[1])
    victim.knowledge.labels[:] = 2
    reader = reader_of(victim)
    known = reader.known_layer()
    assert known is not None
    assert known.noise == {}
    assert known.failed == [SLOT]
    assert known.before == []
    assert known.factor == 1
    assert reader.findings[1:] == [
        "labels and restored noise do not reproduce the gradient at the input of "
        "bottleneck.encoder",
        f"the noise of {SLOT} cannot be recovered",
    ]
    found = reader.read(known, lambda _: None)
    torch.testing.assert_close(found.image, victim.truth.inputs, rtol=1e-4, atol=1e-4)


def test_without_biases_there_is_no_known_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8, bias=False), nn.Linear(8, 4, bias=False))

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    reader = reader_of(make_victim(Plain().double(), SHAPE))
    assert reader.known_layer() is None
    assert reader.findings == ["no linear-layer input can be computed from the gradient"]


def test_within_reshapes_and_clips() -> None:
    facts = victim_of(SMLP).knowledge
    low, high = facts.bounds
    image = torch.linspace(-9, 9, 192)
    found = within(image, facts)
    expected = torch.stack([
        channel.clamp(float(low[at]), float(high[at]))
        for at, channel in enumerate(image.reshape(SHAPE))
    ])  # fmt: skip
    assert found.shape == (1, *SHAPE)
    torch.testing.assert_close(found[0], expected)
