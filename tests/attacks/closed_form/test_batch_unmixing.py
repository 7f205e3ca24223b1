"""Features and noise of a batch, unmixed from its gradient, against the true ones."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.closed_form.batch_unmixing import Unmixing, unmix
from fedleak.attacks.module_calls import calls_of
from fedleak.models import (
    DMLP,
    SMLP,
    FedVAE,
    LeNet,
    Precode,
    VariationalBottleneck,
    kl_penalty,
)
from fedleak.models.noise import inject, noise_slots
from fedleak.updates.knowledge import batch_loss
from tests.cases import Victim, make_victim

SHAPE = (3, 8, 8)


def victim_of(
    kind: Any, batch: int, *, precode: bool = True, classes: int = 6, **settings: Any
) -> Victim:
    torch.manual_seed(0)
    bottleneck = Precode(bottleneck_size=24, beta=0.01) if precode else None
    model = kind(input_shape=SHAPE, num_classes=classes, precode=bottleneck)
    return make_victim(model, SHAPE, batch=batch, num_classes=classes, **settings)


def unmixed(victim: Victim, *, noise: float = 0.0, seed: int = 0) -> Unmixing:
    model = copy.deepcopy(victim.model).double().requires_grad_(False).train()
    batch = torch.zeros_like(victim.truth.inputs, dtype=torch.float64), victim.truth.labels
    generator = torch.Generator().manual_seed(seed)
    gradient = {
        name: value.double() + noise * torch.randn(value.shape, generator=generator).double()
        for name, value in victim.update.received.items()
    }
    before = {name: value.clone() for name, value in model.named_parameters()}
    forwards = {name: vars(module).get("forward") for name, module in model.named_modules()}
    found = unmix(
        model, batch_loss, batch, calls_of(model, batch_loss, batch), gradient,
        generator=generator,
    )  # fmt: skip
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name])
    for name, module in model.named_modules():
        assert vars(module).get("forward") is forwards[name]
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(slot._injected is None for slot in noise_slots(model).values())
    return found


def inputs_of(victim: Victim, layer: str) -> Tensor:
    """Input of a layer at the client, recorded by a hook."""
    seen: list[Tensor] = []
    handle = victim.model.get_submodule(layer).register_forward_pre_hook(
        lambda _module, args: seen.append(args[0].detach())
    )
    with inject(victim.model, victim.truth.noise):
        batch_loss(victim.model, (victim.truth.inputs, victim.truth.labels))
    handle.remove()
    return seen[0].double()


def order_of(found: Tensor, truth: Tensor) -> list[int]:
    """Index of the found sample for each true one; samples of one label may be in another order."""
    nearest = torch.cdist(truth, found).argmin(dim=1).tolist()
    assert sorted(nearest) == list(range(len(truth)))
    return [int(row) for row in nearest]


@pytest.mark.parametrize("kind", [SMLP, DMLP, LeNet], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("batch", "labels"), [(2, [1, 4]), (3, [2, 2, 5]), (5, [0, 3, 3, 3, 1])], ids=str
)
def test_features_and_noise_of_every_sample(kind: Any, batch: int, labels: list[int]) -> None:
    victim = victim_of(kind, batch, labels=labels)
    found = unmixed(victim)
    assert list(found.inputs) == ["classifier", "bottleneck.decoder", "bottleneck.encoder"]
    for layer, known in found.inputs.items():
        truth = inputs_of(victim, layer)
        rows = order_of(known.value, truth)
        real = float((known.value[rows] - truth).norm() / truth.norm())
        assert real < 1e-4
        assert real < 3 * known.error + 1e-7
    noise = victim.truth.noise["bottleneck.noise"].double()
    torch.testing.assert_close(found.noise["bottleneck.noise"][rows], noise, rtol=1e-2, atol=1e-3)


def test_a_model_without_noise_has_its_classifier_unmixed() -> None:
    victim = victim_of(LeNet, 3, precode=False)
    found = unmixed(victim)
    assert list(found.inputs) == ["classifier"]
    assert found.noise == {}
    truth, known = inputs_of(victim, "classifier"), found.inputs["classifier"].value
    torch.testing.assert_close(known[order_of(known, truth)], truth, rtol=1e-3, atol=1e-4)


def test_a_gradient_of_too_low_rank_is_reported() -> None:
    """The rows of a softmax's gradient add up to 0, so their rank is below the classes."""
    found = unmixed(victim_of(SMLP, 6))
    assert found.inputs == {}
    assert found.findings == [
        "the gradient of classifier does not have rank 6, the number of samples"
    ]


def test_noise_of_a_defence_is_reported() -> None:
    found = unmixed(victim_of(SMLP, 2), noise=0.05)
    assert found.inputs == {}
    assert any(says in found.findings[-1] for says in ("cannot be unmixed", "does not have rank"))


def test_wrong_labels_are_reported() -> None:
    victim = victim_of(SMLP, 2, labels=[1, 4])
    victim.truth.labels[:] = torch.tensor([0, 2])
    found = unmixed(victim)
    assert found.inputs == {}
    assert "cannot be unmixed" in found.findings[-1]


class Small(nn.Module):
    """A perceptron with PRECODE and exchangeable parts."""

    def __init__(
        self,
        activation: type[nn.Module] = nn.ReLU,
        behind: nn.Module | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.flat, self.stem = nn.Flatten(), nn.Linear(192, 16)
        self.act = activation(**settings)
        self.bottleneck = VariationalBottleneck(16, bottleneck_size=12)
        self.behind = behind or nn.Identity()
        self.classifier = nn.Linear(16, 6)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        features = self.act(self.stem(self.flat(batch[0])))
        logits = self.classifier(self.behind(self.act(self.bottleneck(features))))
        return functional.cross_entropy(logits, batch[1]) + kl_penalty(self)


def small(**settings: Any) -> Victim:
    torch.manual_seed(0)
    return make_victim(Small(**settings), SHAPE, batch=3, num_classes=6)


@pytest.mark.parametrize("inplace", [False, True], ids=["new", "in-place"])
def test_an_activation_on_both_sides_of_the_layer(inplace: bool) -> None:
    """It is skipped before the layer and computes after it; it may overwrite its input."""
    victim = small(inplace=inplace)
    found = unmixed(victim)
    assert list(found.inputs) == ["classifier", "bottleneck.decoder", "bottleneck.encoder"]
    truth, known = inputs_of(victim, "bottleneck.encoder"), found.inputs["bottleneck.encoder"].value
    torch.testing.assert_close(known[order_of(known, truth)], truth, rtol=1e-3, atol=1e-4)


def test_samples_that_depend_on_each_other_are_reported() -> None:
    found = unmixed(small(activation=nn.Tanh, behind=nn.BatchNorm1d(16)))
    assert list(found.inputs) == ["classifier"]
    assert (
        "bottleneck.decoder cannot be unmixed: samples depend on each other" in found.findings[-1]
    )


def test_a_layer_that_is_not_trained_is_skipped() -> None:
    victim = small(activation=nn.Tanh)
    victim.update.received["classifier.bias"].zero_()
    found = unmixed(victim)
    assert found.findings[0] == "the gradient of classifier.bias is 0"
    assert list(found.inputs) == ["bottleneck.decoder", "bottleneck.encoder"]
    truth, known = inputs_of(victim, "bottleneck.encoder"), found.inputs["bottleneck.encoder"].value
    torch.testing.assert_close(known[order_of(known, truth)], truth, rtol=1e-3, atol=1e-4)


def test_a_loss_of_the_inputs_themselves_is_reported() -> None:
    """The loss depends on the vectors themselves, which are not known."""
    torch.manual_seed(0)
    model = FedVAE(input_shape=(40,), hidden=9, code=4)
    inputs = (torch.rand(3, 40) < 0.2).double()
    labels = torch.zeros(3, dtype=torch.long)
    frozen = copy.deepcopy(model).double().requires_grad_(False).train()
    names, parameters = zip(*model.named_parameters(), strict=True)
    sent = torch.autograd.grad(model.train().batch_loss((inputs.float(), labels)), parameters)
    gradient = {name: value.double() for name, value in zip(names, sent, strict=True)}
    batch = torch.zeros_like(inputs), labels
    found = unmix(
        frozen, batch_loss, batch, calls_of(frozen, batch_loss, batch), gradient,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert found.inputs == {}
    assert "the gradient at its output is 0 or not finite" in found.findings[-1]


class Around(nn.Module):
    """The features reach the loss around the classifier as well."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.stem = nn.Linear(192, 12)
        self.classifier = nn.Linear(12, 6)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        features = self.stem(self.flat(batch[0]))
        return functional.cross_entropy(self.classifier(features) + 3 * features[:, :6], batch[1])


def test_a_path_around_the_classifier_is_detected() -> None:
    """No mixing matrix explains its gradient, as the loss depends on more than its output."""
    torch.manual_seed(0)
    found = unmixed(make_victim(Around(), SHAPE, batch=3, num_classes=6))
    assert found.inputs == {}
