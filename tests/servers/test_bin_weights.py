"""Units fire above their threshold, and the classes' signals are what comes back to them."""

import pytest
import torch
from torch.nn import functional

from fedleak.servers.bin_thresholds import Division
from fedleak.servers.bin_weights import (
    OVERFLOWING,
    ROUNDED,
    TINY_RATE,
    bin_weights,
    even_signals,
    one_sided_signals,
    separation,
    shuffled,
    without_biases,
)
from fedleak.servers.conv_network import find_network
from tests.servers.small_client import SHAPE, images, net

NETWORK = find_network(net(), SHAPE)
SIGNALS = even_signals(4)


def made(division: Division, **settings):
    model = net()
    settings = {"signals": SIGNALS, "scales": TINY_RATE} | settings
    model.load_state_dict(bin_weights(model.state_dict(), NETWORK, division=division, **settings))
    return model


@pytest.mark.parametrize("reference", [None, 5])
@pytest.mark.parametrize("scales", [TINY_RATE, ROUNDED, OVERFLOWING])
def test_a_unit_fires_above_its_threshold(reference, scales) -> None:
    inputs = images(50, 0)
    with torch.no_grad():
        features = net().features(inputs)
        values = Division(3, reference, torch.zeros(1)).of(features)
        finite = values[values.isfinite()]
        limits = torch.linspace(0.01, float(finite.quantile(0.9)), 20, dtype=torch.float64)
        model = made(Division(3, reference, limits), scales=scales)
        fires = model.fc1(features) > 0
    for row, value in zip(fires, values.tolist(), strict=True):
        assert row.tolist() == [value > limit for limit in limits.tolist()]


@pytest.mark.parametrize("only_class", [None, 2])
def test_the_signal_that_comes_back_is_that_of_the_label(only_class: int | None) -> None:
    signals = SIGNALS if only_class is None else functional.one_hot(torch.tensor(2), 4).double()
    limits = torch.linspace(0.0, 0.1, 20, dtype=torch.float64)
    model = made(Division(3, None, limits), signals=signals, only_class=only_class)
    found = []
    for label in range(4):
        units = torch.full((1, 20), 0.1, requires_grad=True)
        logits = model.fc3(functional.relu(model.fc2(units)))
        functional.cross_entropy(logits, torch.tensor([label])).backward()
        (gradient,) = units.grad
        assert float(gradient.std()) < 1e-6 * float(gradient.abs().mean()) + 1e-30
        found.append(float(gradient[0]))
    scale = NETWORK.hidden * TINY_RATE.weight * TINY_RATE.signal
    assert [one / scale for one in found] == pytest.approx(signals.tolist(), abs=1e-2)
    if only_class is not None:
        assert max(abs(found[label]) for label in (0, 1, 3)) < 1e-15 * abs(found[2])


def test_signals() -> None:
    for classes in (2, 3, 10):
        signals = even_signals(classes)
        assert float(signals.sum()) == pytest.approx(0.0, abs=1e-12)
        assert float(signals.abs().min()) > 0.1
        assert float(signals.abs().max()) == 1.0
    assert one_sided_signals(4, 1).tolist() == [1.0, 0.0, 2.0, 3.0]


def test_another_order_changes_the_ratios_of_any_two_classes() -> None:
    draw = torch.Generator().manual_seed(0)
    first = shuffled(even_signals(10), None, draw)
    second = shuffled(even_signals(10), first, draw)
    assert sorted(first.tolist()) == sorted(second.tolist())
    assert separation(second / first) > 0.03
    winner = one_sided_signals(10, 4)
    assert float(shuffled(winner, winner, draw)[4]) == 0.0


def test_separation_is_the_least_relative_difference() -> None:
    assert separation(torch.tensor([1.0, 3.0, -1.0])) == pytest.approx(0.5)
    assert separation(torch.tensor([1.0, 3.0, 3.0])) == 0.0
    assert separation(torch.tensor([2.0])) == 1.0


def test_without_biases_weight_decay_keeps_the_direction_of_features() -> None:
    model, inputs = net(), images(20, 1)
    directions = []
    for shrunk in (1.0, 0.9):
        state = without_biases(model.state_dict(), NETWORK)
        assert torch.equal(state["conv1.bias"], net().conv1.bias)
        twin = net()
        twin.load_state_dict({name: shrunk * value for name, value in state.items()})
        with torch.no_grad():
            directions.append(functional.normalize(twin.features(inputs).double(), dim=1))
    assert float((directions[0] - directions[1]).abs().max()) < 1e-6
