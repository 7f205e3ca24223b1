"""Trap weights: their rows by hand, how often units fire, and what is read."""

import pytest
import torch

from fedleak.errors import BadInput
from fedleak.servers.trap_weights import TrapWeights, pixel_scale
from tests.servers.perceptrons import (
    attacked,
    generator,
    knowledge_of,
    perceptron,
    pictures,
    true_samples,
)  # fmt: skip


def test_positive_entries_are_the_scaled_opposites_of_the_negative_ones() -> None:
    facts = knowledge_of(perceptron(), 4, mean=(0.2,), std=(0.25,))
    crafted = TrapWeights(scaling=0.9).craft(facts, public=None, generator=generator())
    pixels = crafted.weights["1.weight"] / 0.25  # of unnormalised inputs
    for row in pixels:
        negative, positive = row[row < 0], row[row > 0]
        assert len(negative) == len(positive) == 6
        torch.testing.assert_close(positive.sort().values, 0.9 * (-negative).sort().values)
    # A black picture is on the border of every unit.
    black = torch.full((12,), -0.2 / 0.25)
    found = crafted.weights["1.weight"] @ black + crafted.weights["1.bias"]
    torch.testing.assert_close(found, torch.zeros(16), atol=1e-7, rtol=0)


def test_the_scaling_lets_units_fire_for_the_number_of_samples_told() -> None:
    public = pictures(500, 1)
    model = perceptron(60)
    facts = knowledge_of(model, 20)
    crafted = TrapWeights(fires=2.0).craft(facts, public=public, generator=generator())
    model.load_state_dict(crafted.weights)
    fires = (model[1](public.flatten(1)) > 1e-7).float().mean()
    assert float(fires) == pytest.approx(2 / 20, rel=0.02)


def test_samples_are_read_and_nothing_else() -> None:
    shape = (1, 8, 8)
    inputs, labels = pictures(30, 3, shape), torch.arange(30) % 5
    model = perceptron(150, features=64, classes=5)
    _, reading = attacked(
        TrapWeights(), model, inputs, labels, pictures(200, 4, shape), input_shape=shape
    )
    numbers = true_samples(reading, inputs)
    assert len(numbers) >= 25
    assert -1 not in numbers
    assert torch.equal(reading.labels, labels[numbers])


def test_pixel_scale_is_of_each_input() -> None:
    facts = knowledge_of(perceptron(), 1, input_shape=(2, 1, 2), mean=(0.1, 0.2), std=(0.3, 0.4))
    mean, std = pixel_scale(facts)
    torch.testing.assert_close(mean, torch.tensor([0.1, 0.1, 0.2, 0.2]))
    torch.testing.assert_close(std, torch.tensor([0.3, 0.3, 0.4, 0.4]))


@pytest.mark.parametrize("settings", [{"scaling": 1.0}, {"fires": 0.0}, {"deviation": 0.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(BadInput, match=f"Expected `{name}` of trap_weights to be"):
        TrapWeights(**settings)


def test_it_needs_public_inputs_or_the_scaling() -> None:
    facts = knowledge_of(perceptron(), 4)
    with pytest.raises(BadInput, match="Expected public inputs or `scaling` for trap_weights"):
        TrapWeights().craft(facts, public=None, generator=generator())
