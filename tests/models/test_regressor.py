"""A perceptron for a target of numbers."""

import pytest
import torch
from torch.nn import functional

from fedleak.errors import BadInput
from fedleak.models.regressor import Regressor

INPUTS, TARGETS = torch.randn(5, 3), torch.randn(5)


def test_the_loss_is_the_mean_squared_error() -> None:
    model = Regressor(input_shape=(3,), width=8)
    first, second, last = model.layers[1], model.layers[3], model.layers[5]
    predictions = last(second(first(INPUTS).relu()).relu())[:, 0]
    assert torch.equal(model(INPUTS), predictions)
    loss = model.batch_loss((INPUTS, TARGETS))
    assert torch.allclose(loss, ((predictions - TARGETS) ** 2).mean())
    assert torch.allclose(loss, functional.mse_loss(model(INPUTS), TARGETS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "`model.width` to be at least 1, got 0"),
        ({"learning_rate": 0.0}, "`model.learning_rate` to be positive"),
        ({"num_classes": 3}, "a target of numbers for a regression, got 3 classes"),
    ],
)
def test_settings_are_checked(settings: dict[str, float], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Regressor(input_shape=(3,), **settings)  # type: ignore[arg-type]


def test_classes_are_no_targets() -> None:
    model = Regressor(input_shape=(3,))
    with pytest.raises(ValueError, match="targets as real numbers, got"):
        model.batch_loss((INPUTS, torch.arange(5)))


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_optimiser(name: str, kind: type[torch.optim.Optimizer]) -> None:
    model = Regressor(input_shape=(3,), optimizer=name, learning_rate=0.2)  # type: ignore[arg-type]
    found = model.configure_optimizers()
    assert type(found) is kind
    assert found.defaults["lr"] == 0.2
