"""Soliton biases: the distribution by hand, directions, and a batch read whole."""

import math

import pytest
import torch

from fedleak.errors import BadInput
from fedleak.servers.soliton_biases import (
    SolitonBiases,
    soliton_distribution,
    whitened_directions,
)  # fmt: skip
from tests.servers.perceptrons import (
    attacked,
    generator,
    knowledge_of,
    perceptron,
    pictures,
    true_samples,
)  # fmt: skip


def test_the_distribution_is_lubys() -> None:
    samples, c, delta = 10, 0.1, 0.5
    ripple = c * math.log(samples / delta) * math.sqrt(samples)
    spike = round(samples / ripple)
    assert spike == 11 or spike < 11
    weights = []
    for degree in range(1, samples + 1):
        ideal = 1 / samples if degree == 1 else 1 / (degree * (degree - 1))
        extra = ripple / (degree * samples) if degree < min(spike, samples) else 0.0
        if degree == min(spike, samples):
            extra = max(ripple * math.log(ripple / delta) / samples, 0.0)
        weights.append(ideal + extra)
    found = soliton_distribution(samples, c, delta)
    expected = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("samples", [1, 2, 300])
def test_the_distribution_adds_up_to_1(samples: int) -> None:
    found = soliton_distribution(samples, 0.03, 0.5)
    assert found.shape == (samples,)
    assert float(found.sum()) == pytest.approx(1)
    assert bool((found >= 0).all())


def test_directions_have_length_1_and_no_mean_and_grow_with_frequency() -> None:
    directions = whitened_directions(50, (3, 8, 8), generator())
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(50))
    torch.testing.assert_close(directions.mean(1), torch.zeros(50), atol=1e-7, rtol=0)
    power = torch.fft.fft2(directions.reshape(50, 3, 8, 8)).abs().square().mean((0, 1))
    assert 6 < float(power[4, 0] / power[1, 0]) < 40  # 16 expected
    assert whitened_directions(5, (7,), generator()).shape == (5, 7)


def test_units_fire_for_the_numbers_of_samples_of_the_distribution() -> None:
    inputs = torch.randn(4000, 1, 10, 10, generator=generator(1)) * 0.3
    model = perceptron(200, features=100)
    facts = knowledge_of(model, 20, input_shape=(1, 10, 10))
    crafted = SolitonBiases(factor=1.0).craft(facts, public=inputs, generator=generator())
    model.load_state_dict(crafted.weights)
    fires = (model[1](inputs.flatten(1)) > 0).float().mean(0) * 20 + 0.5
    expected = float((soliton_distribution(20, 0.1, 0.5) * torch.arange(1, 21)).sum())
    assert float(fires.mean()) == pytest.approx(expected, rel=0.1)
    assert float((fires < 1.5).float().mean()) == pytest.approx(
        float(soliton_distribution(20, 0.1, 0.5)[0]), abs=0.03
    )


def test_a_batch_is_read_whole_and_certified_and_nothing_else() -> None:
    shape = (1, 8, 8)
    inputs, labels = pictures(40, 3, shape), torch.arange(40) % 5
    model = perceptron(200, features=64, classes=5)
    more = {"input_shape": shape}
    server = SolitonBiases(deviation=0.58)
    _, reading = attacked(server, model, inputs, labels, None, **more)
    numbers = true_samples(reading, inputs)
    assert len(numbers) >= 38
    assert len(set(numbers.tolist())) == len(numbers)
    assert -1 not in numbers
    assert int(reading.certified.sum()) >= 38
    assert torch.equal(reading.labels, labels[numbers])


@pytest.mark.parametrize(
    "settings", [{"c": 0.0}, {"delta": 1.0}, {"factor": 0.0}, {"deviation": -1.0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(BadInput, match=f"Expected `{name}` of soliton_biases to be"):
        SolitonBiases(**settings)


def test_it_needs_public_inputs_or_the_deviation() -> None:
    facts = knowledge_of(perceptron(), 4)
    with pytest.raises(BadInput, match="Expected public inputs or `deviation` for soliton_biases"):
        SolitonBiases().craft(facts, public=None, generator=generator())
