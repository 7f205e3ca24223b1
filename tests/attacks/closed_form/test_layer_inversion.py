"""Layers inverted one after the other: inputs against the true ones, gradients against autograd."""

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks.closed_form.estimates import Estimate
from fedleak.attacks.closed_form.layer_inversion import invert_layers
from fedleak.attacks.closed_form.layer_rules import LAYER_RULES, Layer, Step, layer_rule
from fedleak.attacks.module_calls import Call
from tests.attacks.closed_form.layer_cases import case, conv, rand


def test_several_layers_from_last_to_first() -> None:
    layers = [conv(), nn.Sigmoid(), nn.Conv2d(16, 20, 3, padding=1).double(), nn.Tanh()]
    value, calls = rand(1, 4, 6, 7), []
    entering: Tensor = value
    tensors = [entering.clone().requires_grad_()]
    for layer in layers:
        tensors.append(layer(tensors[-1]))
    upstream = rand(*tensors[-1].shape, seed=1)
    names, parameters = zip(
        *((f"{i}.{n}", p) for i, m in enumerate(layers) for n, p in m.named_parameters()),
        strict=True,
    )
    found = torch.autograd.grad((tensors[-1] * upstream).sum(), [tensors[0], *parameters])
    calls = [
        Call(str(i), layer.requires_grad_(False), tensors[i].detach(), tensors[i + 1].detach())
        for i, layer in enumerate(layers)
    ]
    leaving = tensors[-1].detach()
    last = Estimate(
        leaving, torch.full_like(leaving, 1e-12), torch.zeros_like(leaving, dtype=torch.bool),
        upstream,
    )  # fmt: skip
    gradient = dict(zip(names, found[1:], strict=True))
    off, steps, reason = invert_layers(calls, last, gradient, iterations=4000, seed=0)
    assert reason is None
    assert [step.layer for step in steps] == ["3", "2", "1", "0"]
    torch.testing.assert_close(off[-1][1].value, value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(off[-1][1].gradient, found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "value", "says"),
    [
        (nn.Softmax(dim=1), rand(1, 4), "Softmax, which has no layer rule"),
        (nn.AvgPool2d(2), rand(1, 2, 4, 6), "AvgPool2d): 12 equations for 48 unknowns"),
        (nn.AvgPool2d(2, ceil_mode=True), rand(1, 2, 5, 6), "ceil_mode is not supported"),
        (nn.Conv2d(9, 1, 2, stride=2).double(), rand(1, 9, 6, 6), "45 equations for 324 unknowns"),
        (nn.Linear(3, 4).double(), rand(1, 2, 3), "its input is not one vector per sample"),
        (nn.LeakyReLU(0.0), rand(1, 4), "with a negative slope of 0 it is not invertible"),
    ],
    ids=lambda item: str(item)[:30],
)
def test_the_reason_why_a_layer_is_not_inverted(layer: nn.Module, value: Tensor, says: str) -> None:
    call, output, gradient, _ = case(layer, value)
    off, steps, reason = invert_layers([call], output, gradient, iterations=10, seed=0)
    assert off == steps == []
    assert reason is not None
    assert says in reason


def test_an_empty_chain() -> None:
    """The known layer is the first one, or follows a break of the chain."""
    _, output, gradient, _ = case(nn.Identity(), rand(1, 5))
    assert invert_layers([], output, gradient, iterations=1, seed=0) == ([], [], None)


class Doubled(nn.Module):
    """A user's own layer type."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_a_new_layer_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    call, output, gradient, expected = case(Doubled(), rand(1, 5))
    monkeypatch.setitem(LAYER_RULES, Doubled, LAYER_RULES[nn.ReLU])  # undone after the test

    @layer_rule(Doubled)
    def doubled(module: Doubled, layer: Layer, output: Estimate) -> tuple[Estimate, Step]:
        found = Estimate(output.value / 2, output.error / 2, output.is_bound, 2 * output.gradient)
        return found, Step(layer.call.name, "Doubled", 5, 5, 5, 0.0, 1.0, 1.0)

    ((_, found),), _, reason = invert_layers([call], output, gradient, iterations=1, seed=0)
    assert reason is None
    torch.testing.assert_close(found.value, rand(1, 5))
    torch.testing.assert_close(found.gradient, expected)
