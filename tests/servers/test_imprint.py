"""Bins on brightness: thresholds by hand, and exactly the samples that are alone in a bin."""

import pytest
import torch

from fedleak.errors import BadInput
from fedleak.servers.imprint import Imprint
from tests.servers.perceptrons import (
    attacked,
    generator,
    knowledge_of,
    perceptron,
    pictures,
    true_samples,
)  # fmt: skip


def test_all_units_measure_the_mean_and_the_next_layer_weights_them_alike() -> None:
    facts = knowledge_of(perceptron(), 4)
    crafted = Imprint(deviation=0.3).craft(facts, public=None, generator=generator())
    torch.testing.assert_close(crafted.weights["1.weight"], torch.full((16, 12), 1 / 12))
    thresholds = -crafted.weights["1.bias"]
    expected = torch.distributions.Normal(0, 0.3).icdf(torch.arange(1, 17) / 17)
    torch.testing.assert_close(thresholds, expected, atol=1e-5, rtol=0)
    columns = crafted.weights["3.weight"]
    assert bool((columns == columns[:, :1]).all())
    assert len(set(columns[:, 0].tolist())) == 3


def test_thresholds_are_quantiles_of_public_inputs() -> None:
    public = pictures(2000, 1)
    facts = knowledge_of(perceptron(99), 4)
    crafted = Imprint().craft(facts, public=public, generator=generator())
    bright = public.flatten(1).mean(1)
    above = (bright[:, None] > -crafted.weights["1.bias"]).float().mean(0)
    torch.testing.assert_close(above, 1 - torch.arange(1, 100) / 100, atol=0.02, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_samples_alone_in_a_bin_are_read(seed: int) -> None:
    inputs, labels = pictures(20, seed), torch.arange(20) % 5
    model = perceptron(100, classes=5)
    crafted, reading = attacked(Imprint(), model, inputs, labels, pictures(500, 9))
    thresholds = -crafted.weights["1.bias"].double()
    bins = (inputs.flatten(1).double().mean(1)[:, None] > thresholds).sum(1)
    counts = torch.bincount(bins, minlength=101)
    # Below the first threshold no unit fires.
    alone = {i for i in range(20) if bins[i] > 0 and counts[bins[i]] == 1}
    numbers = true_samples(reading, inputs)
    # A sample whose part is small beside the sum of all brighter ones may be lost in rounding.
    assert set(numbers.tolist()) <= alone
    assert len(numbers) >= len(alone) - 1 >= 12
    assert torch.equal(reading.labels, labels[numbers])
    assert int(reading.certified.sum()) >= len(alone) // 2


@pytest.mark.parametrize("settings", [{"deviation": 0.0}, {"size": 0.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(BadInput, match=f"Expected `{name}` of imprint to be above 0"):
        Imprint(**settings)


def test_it_needs_public_inputs_or_the_deviation() -> None:
    facts = knowledge_of(perceptron(), 4)
    with pytest.raises(BadInput, match="Expected public inputs or `deviation` for imprint"):
        Imprint().craft(facts, public=None, generator=generator())
