"""Noise restored from the inputs of the layers around it, against the true noise."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.closed_form.linear import known_inputs
from fedleak.attacks.closed_form.noise import Head, restore_noise
from fedleak.attacks.module_calls import calls_of
from fedleak.models import FedVAE
from fedleak.models.noise import NormalNoise, inject, noise_slots
from fedleak.updates.knowledge import batch_loss
from tests.cases import LIGHT_MODELS, ModelCase, Victim, case_victim, make_victim


def head_of(victim: Victim) -> tuple[Head, list[str], dict[str, Tensor], list[str]]:
    """The model from its earliest known layer on, and the restored noise."""
    model = copy.deepcopy(victim.model).double().requires_grad_(False).train()
    batch = torch.zeros_like(victim.truth.inputs, dtype=torch.float64), victim.truth.labels
    calls = calls_of(model, batch_loss, batch)
    gradient = {name: value.double() for name, value in victim.update.received.items()}
    known = known_inputs(gradient, calls)
    at = next(i for i, call in enumerate(calls) if call.name in known)
    value = known[calls[at].name].value.reshape(calls[at].input.shape)
    head = Head(model, batch_loss, batch, calls[at].name, value)
    found, failed = restore_noise(head, calls[at:], known)
    return head, [call.name for call in calls[at:]], found, failed


@pytest.mark.parametrize(
    "case", [case for case in LIGHT_MODELS if case.bottleneck == "linear"], ids=str
)
def test_noise_of_precode(case: ModelCase) -> None:
    victim = case_victim(case, precode=True, dtype=torch.float64)
    head, _, found, failed = head_of(victim)
    assert failed == []
    assert set(found) == set(noise_slots(victim.model))
    for slot, noise in victim.truth.noise.items():
        torch.testing.assert_close(found[slot], noise, rtol=1e-6, atol=1e-6)
    # The gradient in the known layer's input, by autograd on the real batch.
    seen: list[Tensor] = []
    layer = victim.model.get_submodule(head._layer)
    handle = layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    inputs = victim.truth.inputs.clone().requires_grad_()
    with inject(victim.model, victim.truth.noise):
        loss = batch_loss(victim.model, (inputs, victim.truth.labels))
    handle.remove()
    (expected,) = torch.autograd.grad(loss, seen[0])
    torch.testing.assert_close(head.input_gradient(found), expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(head.value, seen[0].detach(), rtol=1e-6, atol=1e-8)


def test_noise_of_a_recommender() -> None:
    """The same functions restore the noise of a variational autoencoder."""
    torch.manual_seed(0)
    model = FedVAE(input_shape=(20,), hidden=9, code=4, dropout=0.0).double()
    inputs = (torch.rand(1, 20) < 0.3).double()
    labels = torch.zeros(1, dtype=torch.long)
    shapes = {"dropout": (1, 20), "noise": (1, 4)}
    drawn = {name: torch.randn(shapes[name]).double() for name in noise_slots(model)
             if name in shapes and "drop" not in name}  # fmt: skip
    with inject(model, drawn):
        loss = batch_loss(model, (inputs, labels))
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradient = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    frozen = copy.deepcopy(model).requires_grad_(False)
    calls = calls_of(frozen, batch_loss, (torch.ones_like(inputs), labels))
    known = known_inputs(gradient, calls)
    at = next(i for i, call in enumerate(calls) if call.name in known)
    head = Head(
        frozen, batch_loss, (torch.ones_like(inputs), labels), calls[at].name,
        known[calls[at].name].value,
    )  # fmt: skip
    found, failed = restore_noise(head, calls[at:], known)
    assert failed == []
    torch.testing.assert_close(found["noise"], drawn["noise"], rtol=1e-6, atol=1e-6)


class Branched(nn.Module):
    """The image reaches the loss around the linear layer as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3)
        self.flat = nn.Flatten()
        self.head = nn.Linear(8, 4)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        features = self.flat(self.stem(batch[0]))
        logits = self.head(features) + features[:, :4]
        return functional.cross_entropy(logits, batch[1])


def test_a_path_around_the_known_layer_is_detected() -> None:
    torch.manual_seed(0)
    victim = make_victim(Branched().double(), (1, 4, 4))
    head, _, _, _ = head_of(victim)
    assert not head.determines_loss()
    plain, _, _, _ = head_of(case_victim(LIGHT_MODELS[0], precode=True))
    assert plain.determines_loss()


class TwoNoises(nn.Module):
    """Two slots before one layer: two unknowns per equation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 5)
        self.one, self.two = NormalNoise(), NormalNoise()
        self.decoder = nn.Linear(5, 4)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        code = self.encoder(batch[0].flatten(1))
        code = code * (1 + 0.3 * self.one(code)) + 0.5 * self.two(code)
        return functional.cross_entropy(self.decoder(code), batch[1])


def test_two_noises_before_one_layer_cannot_be_recovered() -> None:
    torch.manual_seed(0)
    _, _, found, failed = head_of(make_victim(TwoNoises().double(), (1, 2, 3)))
    assert found == {}
    assert failed == ["one", "two"]


def test_what_the_head_uses() -> None:
    """A penalty on a weight before the layer is used by the head, too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()

    def plain(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(module(batch[0]), batch[1])

    def penalised(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return plain(module, batch) + module[0].bias.square().sum()

    batch, value = (torch.zeros(1, 4).double(), torch.tensor([1])), torch.rand(1, 3).double()
    assert Head(model, plain, batch, "2", value).uses() == {"2.weight", "2.bias"}
    used = Head(model, penalised, batch, "2", value).uses()
    assert used == {"2.weight", "2.bias", "0.bias"}
