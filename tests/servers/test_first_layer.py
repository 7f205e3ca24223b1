"""The first layer of a perceptron: found, chosen, read; other models are refused."""

import math

import pytest
import torch
from torch import nn

from fedleak.errors import BadInput
from fedleak.servers.first_layer import deviation_of, find_first_layer
from fedleak.servers.soliton_biases import SolitonBiases
from tests.servers.perceptrons import (
    SHAPE,
    attacked,
    generator,
    knowledge_of,
    perceptron,
    pictures,
    true_samples,
    update_of,
)  # fmt: skip

SERVER = SolitonBiases(deviation=0.5)


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 3)
    )


def test_the_first_layer_and_the_one_after_it_are_found() -> None:
    model = deep()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = find_first_layer(model, SHAPE)
    assert (first.name, first.following) == ("1", "3")
    assert first.module is model[1]
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 9, bias=False), nn.ReLU(), nn.Linear(9, 3)),
            "got Sequential with `1` without biases",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 3)),
            "got Sequential with `1` without a ReLU and a linear layer after it",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 3)),
            "got Sequential with `1` without a ReLU and a linear layer after it",
        ),
        (
            nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3)),
            "with no linear layer that is given the inputs themselves",
        ),
    ],
)
def test_models_that_it_cannot_attack_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        SERVER.craft(knowledge_of(model, 4), public=None, generator=generator())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 3)), "`0` of Sequential is"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.Dropout(), nn.ReLU()), "chance"),
        (nn.Sequential(nn.Flatten()), "has no parameters"),
    ],
)
def test_why_a_model_is_refused(model: nn.Module, message: str) -> None:
    assert message in (SERVER.refuses_model(model) or "")
    with pytest.raises(BadInput, match="Expected a model that soliton_biases can attack, but"):
        SERVER.craft(knowledge_of(model, 4), public=None, generator=generator())


def test_only_the_first_layer_is_changed() -> None:
    model = deep()
    crafted = SERVER.craft(knowledge_of(model, 4), public=None, generator=generator())
    assert crafted.weights.keys() == model.state_dict().keys()
    changed = {
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, crafted.weights[name])
    }
    assert changed == {"1.weight", "1.bias"}
    assert not crafted.config


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_a_deeper_perceptron_is_read_from_a_gradient_or_from_weights(rate: float) -> None:
    inputs, labels = pictures(6), torch.arange(6) % 3
    more = {"protocol": "fedavg", "learning_rate": rate, "local_steps": 1} if rate else {}
    _, reading = attacked(SERVER, deep(), inputs, labels, None, rate, **more)
    numbers = true_samples(reading, inputs)
    assert len(numbers) >= 4
    assert -1 not in numbers
    assert torch.equal(reading.labels, labels[numbers])
    assert reading.inputs.shape[1:] == SHAPE
    assert reading.features.shape == (len(numbers), 0)
    assert f"{len(numbers)} of 6 samples were read" in reading.findings[0]


def test_several_steps_are_refused() -> None:
    model = deep()
    facts = knowledge_of(model, 4, protocol="fedavg", learning_rate=0.1, local_steps=3)
    text = "an update that .* can read, but it reads the update of one step, and theirs is of 3"
    with pytest.raises(BadInput, match=text):
        SERVER.craft(facts, public=None, generator=generator())
    one = knowledge_of(model, 4, protocol="fedavg", learning_rate=0.1, local_steps=1)
    crafted = SERVER.craft(one, public=None, generator=generator())
    update = update_of(crafted, model, pictures(4), torch.zeros(4, dtype=torch.long), 0.1)
    with pytest.raises(BadInput, match=text):
        SERVER.read(facts, ((crafted, update),), public=None, generator=generator())


def test_the_number_of_samples_is_needed() -> None:
    with pytest.raises(BadInput, match=r"Expected the number of samples .* got 0"):
        SERVER.craft(knowledge_of(perceptron(), 0), public=None, generator=generator())


def test_the_deviation_is_told_or_that_of_public_inputs() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    assert deviation_of(values, 5.0, "x") == 5
    assert math.isclose(deviation_of(values, None, "x"), 1)
    with pytest.raises(BadInput, match="Expected public inputs or `deviation` for x, got neither"):
        deviation_of(None, None, "x")
