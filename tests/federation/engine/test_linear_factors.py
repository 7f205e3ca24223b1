"""Rank-one factors of weight gradients, against autograd's gradients."""

import pytest
import torch
from torch import Tensor, nn

from fedleak.federation.engine.linear_factors import linear_factors


class Reused(nn.Module):
    """Calls one of its two layers twice."""

    def __init__(self) -> None:
        super().__init__()
        self.once = nn.Linear(3, 4)
        self.twice = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.twice(self.twice(input=self.once(inputs).tanh()))


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3, bias=False))


def test_the_outer_product_is_the_gradient() -> None:
    model = perceptron()
    with linear_factors(model) as factors:
        model(torch.randn(1, 5)).square().sum().backward()
    assert set(factors) == {"0.weight", "2.weight"}
    for name, (output_gradient, inputs) in factors.items():
        gradient = model.get_parameter(name).grad
        torch.testing.assert_close(torch.outer(output_gradient, inputs), gradient)


def test_a_layer_that_is_called_twice_has_no_factors() -> None:
    torch.manual_seed(0)
    model = Reused()
    with linear_factors(model) as factors:
        model(torch.randn(1, 3)).sum().backward()
    assert set(factors) == {"once.weight"}


@pytest.mark.parametrize("shape", [(2, 5), (1, 2, 5), (5,)])
def test_only_batches_of_one_vector_have_factors(shape: tuple[int, ...]) -> None:
    model = perceptron()
    with linear_factors(model) as factors:
        model(torch.randn(shape)).sum().backward()
    assert factors == {}


def test_hooks_are_removed_after_an_error() -> None:
    model = perceptron()
    with pytest.raises(ZeroDivisionError), linear_factors(model) as factors:
        _ = 1 / 0
    model(torch.randn(1, 5)).sum().backward()
    assert factors == {}
    assert not any(module._forward_hooks for module in model.modules())
