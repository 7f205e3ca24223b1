"""Series ``(channels, times)`` are attacked as images are, without what is for images alone."""

import pytest
import torch
from torch import nn

from fedleak.attacks import IGA, RGAP, Analytic, Attack
from tests.attacks.numbers import gradient_of, seeded, told

LABEL = torch.tensor([1])
SERIES = torch.sin(torch.linspace(0, 9, 32)).reshape(1, 2, 16) * 2.5


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, kernel_size=3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(128, 4)
    )


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))


@pytest.mark.parametrize(
    ("model", "attack"),
    [
        (perceptron, Analytic()),
        (perceptron, RGAP()),
        (convolution, RGAP()),
        (convolution, IGA(iterations=10, optimizer="lbfgs", learning_rate=1.0, signed=False)),
    ],
    ids=["analytic", "rgap", "rgap-convolution", "iga"],
)
def test_a_series_beyond_the_range_of_pixels(model: type[nn.Module], attack: Attack) -> None:
    victim = seeded(model)
    (found,) = attack([gradient_of(victim, SERIES, LABEL)], told(victim, SERIES, LABEL))
    assert torch.allclose(found.inputs, SERIES, atol=0.02)
    assert found.explained > 0.99
