"""Reading samples from the rows of a gradient, against a slow version and hand-made rows."""

import pytest
import torch
from torch import Tensor

from fedleak.servers.first_layer import _Signals
from fedleak.servers.peeling import Peeled, peel
from tests.servers.perceptrons import (
    cross_entropy,
    knowledge_of,
    perceptron,
    pictures,
    slow_peeling,
)  # fmt: skip


def read(seed: int, samples: int = 6) -> tuple[Peeled, list[Tensor], Tensor, Tensor]:
    """A 12-16-3 perceptron whose units fire for some of six samples, read by both versions."""
    model = perceptron()
    inputs, labels = pictures(samples, seed), torch.arange(samples) % 3
    with torch.no_grad():
        found = inputs.flatten(1) @ model[1].weight.T
        # The units fire for one to three samples.
        shares = torch.linspace(0.5, 0.95, 16)
        model[1].bias.copy_(-torch.quantile(found, shares, dim=0).diagonal())
    names, parameters = zip(*model.named_parameters(), strict=True)
    values = torch.autograd.grad(cross_entropy(model, (inputs, labels)), parameters)
    gradient = dict(zip(names, values, strict=True))
    slow = slow_peeling(perceptron_copy(model), gradient, samples)
    signals = _Signals(
        perceptron_copy(model).double(), "1", knowledge_of(model, samples), samples, lambda v: v
    )
    limits = (-torch.ones(12), torch.ones(12))
    bias = gradient["1.bias"]
    fast = peel(
        gradient["1.weight"], bias, signals, samples=samples, limits=limits, error=1e-7 * bias.abs()
    )
    return fast, slow, inputs.flatten(1), labels


def perceptron_copy(model: torch.nn.Module) -> torch.nn.Sequential:
    twin = perceptron()
    twin.load_state_dict(model.state_dict())
    return twin


def nearest(found: Tensor, inputs: Tensor) -> list[int]:
    distance = torch.cdist(found.float(), inputs)
    assert float(distance.min(1).values.max()) < 1e-3
    return distance.argmin(1).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_what_a_slow_version_finds(seed: int) -> None:
    fast, slow, inputs, labels = read(seed)
    assert len(slow) >= 4
    numbers = nearest(fast.inputs, inputs)
    assert set(numbers) == set(nearest(torch.stack(slow), inputs))
    assert len(set(numbers)) == len(numbers)
    assert torch.equal(fast.labels, labels[numbers])
    assert float(fast.errors.max()) < 1e-3


def rows_of(parts: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    return parts.T @ samples, parts.sum(0)


def peeled(parts: Tensor, samples: Tensor, number: int | None = None) -> Peeled:
    """Read rows that hold given parts of samples; a signal is looked up by the nearest sample."""
    weight, bias = rows_of(parts, samples)

    def signals(inputs: Tensor) -> Tensor:
        distance, nearest = torch.cdist(inputs, samples).min(1)
        other = torch.full_like(parts[nearest], 7.0)
        return torch.where(distance[:, None] < 1e-3, parts[nearest], other)[:, None]

    limits = (-torch.ones(samples.shape[1]), torch.ones(samples.shape[1]))
    return peel(
        weight, bias, signals, samples=number or len(samples), limits=limits,
        error=1e-8 * bias.abs(),
    )  # fmt: skip


SAMPLES = pictures(3, 5).flatten(1).double()


def test_a_chain_of_rows_is_peeled_and_a_row_beside_it_certifies() -> None:
    # Rows: a; a + b; b + c; a + b + c. The last one is explained without a sample found in it.
    parts = torch.tensor([[1.0, 0.5, 0, 0.25], [0, 1, 1, 0.5], [0, 0, 2, 1.0]]).double()
    found = peeled(parts, SAMPLES)
    torch.testing.assert_close(found.inputs, SAMPLES)
    assert found.certified.tolist() == [True] * 3


def test_without_a_second_row_nothing_is_certified() -> None:
    found = peeled(torch.eye(3).double(), SAMPLES)
    assert len(found.inputs) == 3
    assert not found.certified.any()


def test_a_row_of_two_samples_is_no_sample() -> None:
    parts = torch.tensor([[1.0, 1.0], [1, 2.0], [1, 3.0]]).double()
    found = peeled(parts, SAMPLES)
    assert found.inputs.shape == (0, 12)
    assert found.certified.shape == (0,)


def test_a_sample_outside_the_range_is_left_out() -> None:
    samples = SAMPLES.clone()
    samples[1, 3] = 1.5
    found = peeled(torch.eye(3).double(), samples)
    assert sorted(nearest(found.inputs, samples.float())) == [0, 2]


def test_no_more_samples_are_found_than_there_are() -> None:
    assert len(peeled(torch.eye(3).double(), SAMPLES, number=2).inputs) == 2


def test_a_row_that_is_lost_in_rounding_is_not_read() -> None:
    weight, bias = rows_of(torch.eye(3).double(), SAMPLES)
    limits = (-torch.ones(12), torch.ones(12))
    found = peel(
        weight, bias, lambda inputs: torch.eye(3).double()[: len(inputs), None],
        samples=3, limits=limits, error=torch.full((3,), 0.01),
    )  # fmt: skip
    assert len(found.inputs) == 0
