"""What stands in a gradient in closed form, against what the client really had."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.closed_form.linear import known_inputs, linear_input, readable
from fedleak.attacks.closed_form.noise import Head, restore_noise
from fedleak.attacks.module_calls import calls_of, chain_to
from fedleak.models import FedVAE
from fedleak.models.noise import NormalNoise, inject, noise_slots
from fedleak.updates.knowledge import batch_loss
from tests.cases import LIGHT_MODELS, ModelCase, Victim, case_victim, make_victim
from tests.toys import OwnClassifier


@given(st.integers(2, 7), st.integers(1, 9), st.integers(0, 1000))
def test_input_of_a_linear_layer(outgoing: int, incoming: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(incoming, outgoing).double()
    value = torch.randn(1, incoming, generator=generator, dtype=torch.float64)
    upstream = torch.randn(1, outgoing, generator=generator, dtype=torch.float64)
    weight, bias = torch.autograd.grad((layer(value) * upstream).sum(), [*layer.parameters()])
    known = linear_input(weight, bias)
    torch.testing.assert_close(known.value, value[0])
    assert known.trusted


def test_estimated_error_is_the_real_one() -> None:
    """Rows of unlike noise: the estimate holds, and the noisy rows count for little."""
    generator = torch.Generator().manual_seed(0)
    leaving = torch.randn(40, generator=generator, dtype=torch.float64)
    value = torch.randn(500, generator=generator, dtype=torch.float64)
    spread = torch.where(torch.arange(40) % 2 == 0, 1e-4, 1e-1)[:, None]
    noise = torch.randn(40, 500, generator=generator, dtype=torch.float64)
    weight = torch.outer(leaving, value) + spread * noise
    known = linear_input(weight, leaving)
    real = float((known.value - value).square().mean().sqrt() / value.square().mean().sqrt())
    assert real == pytest.approx(known.error, rel=0.2)
    plain = weight.T @ leaving / leaving.square().sum()
    assert real < 0.01 * float((plain - value).square().mean().sqrt())


@pytest.mark.parametrize("learning_rate", [1e-1, 1e-3])
def test_estimated_error_of_a_weight_difference_is_the_real_one(learning_rate: float) -> None:
    """A step of SGD in float32: what the weights' rounding leaves of the gradient."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(40, 501, generator=generator) / 20
    leaving = torch.randn(40, generator=generator, dtype=torch.float64) / 100
    value = torch.randn(500, generator=generator, dtype=torch.float64)
    gradient = torch.outer(leaving, torch.cat((value, torch.ones(1).double())))
    after = before - (learning_rate * gradient).float()
    assert after.dtype == torch.float32
    difference = (before.double() - after.double()) / learning_rate
    known = linear_input(difference[:, :-1], difference[:, -1])
    real = float((known.value - value).square().mean().sqrt() / value.square().mean().sqrt())
    assert 1e-9 / learning_rate < real
    assert real == pytest.approx(known.error, rel=0.5)


def test_what_was_pruned_is_left_out() -> None:
    """Small entries cut to 0: what is left of a column tells its entry, exactly."""
    generator = torch.Generator().manual_seed(0)
    leaving = torch.randn(400, generator=generator, dtype=torch.float64)
    value = torch.randn(30, generator=generator, dtype=torch.float64)
    value += 0.5 * value.sign()  # else some columns are cut as a whole
    value[3] = 0
    weight = torch.outer(leaving, value)
    weight[weight.abs() < weight.abs().median()] = 0
    known = linear_input(weight, leaving)
    torch.testing.assert_close(known.value, value)
    assert known.trusted


@pytest.mark.parametrize("adam", [False, True])
def test_signs_are_not_taken_for_a_gradient(adam: bool) -> None:
    """A product they are, and of what entered the layer they have the signs alone."""
    generator = torch.Generator().manual_seed(0)
    leaving = torch.randn(40, generator=generator, dtype=torch.float64) / 100
    value = torch.randn(500, generator=generator, dtype=torch.float64)
    weight = torch.outer(leaving, value)
    assert linear_input(weight, leaving).trusted
    sent = [
        gradient / (gradient.abs() + 1e-8) if adam else 0.3 * gradient.sign()
        for gradient in (weight, leaving)
    ]
    known = linear_input(*sent)
    assert not known.trusted
    assert torch.equal(known.value, value.sign())


def test_entries_of_one_size_are_read() -> None:
    """As of a white image, or of a classifier that has learnt nothing."""
    leaving = torch.full((100,), 0.01, dtype=torch.float64)
    leaving[3] = -0.99
    assert linear_input(torch.outer(leaving, torch.arange(1.0, 9.0).double()), leaving).trusted
    items = (torch.arange(50) % 3 == 0).double()
    assert linear_input(torch.outer(leaving, items), leaving).trusted
    two = torch.tensor([0.3, -0.3], dtype=torch.float64)
    features = 0.5 + torch.linspace(-0.05, 0.05, 50, dtype=torch.float64)
    assert linear_input(torch.outer(two, features), two).trusted


def test_one_row_tells_nothing_of_its_error() -> None:
    known = linear_input(torch.ones(1, 4), torch.ones(1))
    assert torch.equal(known.value, torch.ones(4, dtype=torch.float64))
    assert not known.trusted


@pytest.mark.parametrize("zero", ["weight", "bias"])
def test_no_gradient_tells_nothing(zero: str) -> None:
    weight, bias = torch.ones(3, 4), torch.ones(3)
    known = linear_input(weight * (zero != "weight"), bias * (zero != "bias"))
    assert not known.trusted
    assert bool(known.value.isfinite().all())


def head_of(victim: Victim) -> tuple[Head, list[str], dict[str, Tensor], list[str]]:
    """The model from its earliest known layer on, and the noise that was restored."""
    model = copy.deepcopy(victim.model).double().requires_grad_(False).train()
    batch = torch.zeros_like(victim.truth.inputs, dtype=torch.float64), victim.truth.labels
    calls = calls_of(model, batch_loss, batch)
    gradient = {name: value.double() for name, value in victim.update.received.items()}
    known = known_inputs(gradient, calls)
    at = next(i for i, call in enumerate(calls) if call.name in known)
    value = known[calls[at].name].value.reshape(calls[at].entering.shape)
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
    torch.testing.assert_close(head.signal(found), expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(head.value, seen[0].detach(), rtol=1e-6, atol=1e-8)


def test_noise_of_a_recommender() -> None:
    """The same functions, with no word of what a variational autoencoder is."""
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
    """The image reaches the loss around the linear layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3)
        self.flat = nn.Flatten()
        self.head = nn.Linear(8, 4)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        features = self.flat(self.stem(batch[0]))
        logits = self.head(features) + features[:, :4]
        return functional.cross_entropy(logits, batch[1])


def test_a_way_around_the_known_layer_is_noticed() -> None:
    torch.manual_seed(0)
    victim = make_victim(Branched().double(), (1, 4, 4))
    head, _, _, _ = head_of(victim)
    assert not head.is_all()
    plain, _, _, _ = head_of(case_victim(LIGHT_MODELS[0], precode=True))
    assert plain.is_all()


def test_chain_is_cut_where_a_function_comes_between() -> None:
    own = next(case for case in LIGHT_MODELS if case.kind is OwnClassifier)
    victim = case_victim(own, precode=False)
    inputs = victim.truth.inputs
    calls = calls_of(victim.model, batch_loss, (inputs, victim.truth.labels))
    chain = chain_to(calls, "head", inputs)
    assert chain is not None
    # hidden -> tanh (a function) -> guard -> head
    assert [call.name for call in chain] == ["guard"]
    assert chain_to(calls, "nowhere", inputs) is None


class Residual(nn.Module):
    """Adds in place, which leaves the tensor the same object."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 1, 3, padding=1)
        self.second = nn.Conv2d(1, 1, 3, padding=1)
        self.flat = nn.Flatten()
        self.head = nn.Linear(16, 4)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        features = self.first(batch[0])
        leaving = self.second(features)
        leaving += features
        return functional.cross_entropy(self.head(input=self.flat(leaving)), batch[1])


def test_chain_is_cut_where_something_is_done_in_place() -> None:
    torch.manual_seed(0)
    victim = make_victim(Residual().double(), (1, 4, 4))
    calls = calls_of(victim.model, batch_loss, (victim.truth.inputs, victim.truth.labels))
    chain = chain_to(calls, "head", victim.truth.inputs)
    assert chain is not None
    assert [call.name for call in chain] == ["flat"]


class TwoNoises(nn.Module):
    """Two slots in front of one layer: two unknowns for each number."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 5)
        self.one, self.two = NormalNoise(), NormalNoise()
        self.decoder = nn.Linear(5, 4)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        code = self.encoder(batch[0].flatten(1))
        code = code * (1 + 0.3 * self.one(code)) + 0.5 * self.two(code)
        return functional.cross_entropy(self.decoder(code), batch[1])


def test_two_noises_before_one_layer_are_not_to_be_had() -> None:
    torch.manual_seed(0)
    _, _, found, failed = head_of(make_victim(TwoNoises().double(), (1, 2, 3)))
    assert found == {}
    assert failed == ["one", "two"]


def test_layers_that_share_a_weight_or_take_several_vectors_are_left_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    model[1].weight = model[0].weight
    value, upstream = torch.randn(1, 4), torch.randn(1, 3)

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (module(batch[0]) * upstream).sum()

    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss(model, (value, value)), parameters)
    gradient = dict(zip(names, found, strict=True))
    assert list(known_inputs(gradient, calls_of(model, loss, (value, value)))) == ["2"]
    several = torch.randn(2, 4)
    calls = calls_of(model, loss, (several, value))
    assert readable(gradient, calls, 1) == []
    assert [call.name for call in readable(gradient, calls, 2)] == ["2"]
