"""Inputs of linear layers from their gradients, against the true ones."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.closed_form.linear import (
    bounded_linear_input,
    invertible_linear,
    known_inputs,
    linear_input,
)
from fedleak.attacks.module_calls import calls_of


@given(st.integers(2, 7), st.integers(1, 9), st.integers(0, 1000))
def test_input_of_a_linear_layer(outgoing: int, incoming: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(incoming, outgoing).double()
    value = torch.randn(1, incoming, generator=generator, dtype=torch.float64)
    upstream = torch.randn(1, outgoing, generator=generator, dtype=torch.float64)
    weight, bias = torch.autograd.grad((layer(value) * upstream).sum(), [*layer.parameters()])
    # Entries of one magnitude may be signs, from which no input follows.
    sizes = weight.abs()
    assume(float(sizes.max() - sizes.min()) > 0.1 * float(sizes.max()))
    known = linear_input(weight, bias)
    torch.testing.assert_close(known.value, value[0])
    assert known.trusted


def test_estimated_error_is_the_real_one() -> None:
    """With noise that differs between rows: the estimate holds and noisy rows count little."""
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
    """A step of SGD in float32, in which the weights are rounded."""
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


def test_pruned_entries_are_left_out() -> None:
    """With small entries set to 0, the rest of a column determines its entry exactly."""
    generator = torch.Generator().manual_seed(0)
    leaving = torch.randn(400, generator=generator, dtype=torch.float64)
    value = torch.randn(30, generator=generator, dtype=torch.float64)
    value += 0.5 * value.sign()  # else some columns are pruned entirely
    value[3] = 0
    weight = torch.outer(leaving, value)
    weight[weight.abs() < weight.abs().median()] = 0
    known = linear_input(weight, leaving)
    torch.testing.assert_close(known.value, value)
    assert known.trusted


@pytest.mark.parametrize("adam", [False, True])
def test_signs_are_not_taken_for_a_gradient(adam: bool) -> None:
    """They are a product as well, but only with the signs of the input."""
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


def test_entries_of_one_magnitude_are_accepted() -> None:
    """Such as of a white image, or of an untrained classifier."""
    leaving = torch.full((100,), 0.01, dtype=torch.float64)
    leaving[3] = -0.99
    assert linear_input(torch.outer(leaving, torch.arange(1.0, 9.0).double()), leaving).trusted
    items = (torch.arange(50) % 3 == 0).double()
    assert linear_input(torch.outer(leaving, items), leaving).trusted
    two = torch.tensor([0.3, -0.3], dtype=torch.float64)
    features = 0.5 + torch.linspace(-0.05, 0.05, 50, dtype=torch.float64)
    assert linear_input(torch.outer(two, features), two).trusted


def test_the_error_of_a_single_row_is_infinite() -> None:
    known = linear_input(torch.ones(1, 4), torch.ones(1))
    assert torch.equal(known.value, torch.ones(4, dtype=torch.float64))
    assert not known.trusted


@pytest.mark.parametrize("zero", ["weight", "bias"])
def test_a_gradient_of_zeros_determines_nothing(zero: str) -> None:
    weight, bias = torch.ones(3, 4), torch.ones(3)
    known = linear_input(weight * (zero != "weight"), bias * (zero != "bias"))
    assert not known.trusted
    assert bool(known.value.isfinite().all())


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
    assert invertible_linear(gradient, calls, 1) == []
    assert [call.name for call in invertible_linear(gradient, calls, 2)] == ["2"]


class TiedEmbedding(nn.Module):
    """A linear layer whose weight is also that of an embedding."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.head, self.table = nn.Linear(4, 6), nn.Embedding(6, 4)
        if tied:
            self.table.weight = self.head.weight

    def forward(self, indices: Tensor) -> Tensor:
        return self.head(self.table(indices))


@pytest.mark.parametrize("tied", [True, False])
def test_a_weight_shared_with_another_type_of_layer_is_left_out(tied: bool) -> None:
    """Its gradient is the sum over both layers."""
    torch.manual_seed(0)
    model, batch = TiedEmbedding(tied=tied), (torch.tensor([2]), torch.tensor([5]))

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(module(batch[0]), batch[1])

    names, parameters = zip(*model.named_parameters(), strict=True)
    gradient = dict(zip(names, torch.autograd.grad(loss(model, batch), parameters), strict=True))
    found = known_inputs(gradient, calls_of(model, loss, batch))
    assert list(found) == ([] if tied else ["head"])
    if not tied:
        torch.testing.assert_close(found["head"].value, model.table(batch[0]).double())


# --------------------------------------------------------------------- gradients up to a bound


def bounded_case() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """An input, and gradients of which some rows and entries are known only by their sign."""
    torch.manual_seed(0)
    value, output = torch.rand(30, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    weight = torch.outer(output, value)
    spread, own = 1e-3 * torch.rand_like(weight) + 1e-4, 1e-3 * torch.rand_like(output) + 1e-4
    spread[:3] = own[3:5] = torch.inf
    spread[6, :10] = torch.inf
    unit = 0.3 * torch.randn_like(weight).clamp(-3, 3)
    given = torch.where(spread.isinf(), weight.sign() * 1e-3, weight + spread * unit)
    other = torch.where(own.isinf(), 1e-3 * output.sign(), output + own * unit[:, 0])
    return value, given, other, spread, own


def test_bounded_gradients_give_the_input_and_its_error() -> None:
    value, weight, output, spread, own = bounded_case()
    found = bounded_linear_input(weight, output, spread, own)
    missed = float((found.value - value).square().mean().sqrt() / value.square().mean().sqrt())
    assert missed < 3e-3
    assert missed / 5 < found.error < 5 * missed
    # Without the bounds, the entries of which the sign alone is known spoil it.
    plain = linear_input(weight, output)
    assert float((plain.value - value).norm()) > 10 * float((found.value - value).norm())


def test_exact_bounds_give_the_exact_input() -> None:
    value, output = torch.rand(7, dtype=torch.float64), torch.tensor([1.0, -2, 0.5])
    weight = torch.outer(output.double(), value)
    found = bounded_linear_input(weight, output, torch.zeros(3, 7), torch.zeros(3))
    torch.testing.assert_close(found.value, value)
    assert found.error < 1e-12


def test_an_entry_of_which_nothing_is_known_makes_the_input_unknown() -> None:
    _, weight, output, spread, own = bounded_case()
    spread[:, 4] = torch.inf
    found = bounded_linear_input(weight, output, spread, own)
    assert found.error == float("inf")
    assert float(found.value[4]) == 0
    nothing = bounded_linear_input(weight, output, spread, torch.full_like(own, torch.inf))
    assert nothing.error == float("inf")
    assert not bool(nothing.value.any())
