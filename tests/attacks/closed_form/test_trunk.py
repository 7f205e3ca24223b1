"""The part of a model before a layer, against the parts of the model written out."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.closed_form.trunk import Trunk


class Net(nn.Module):
    """Functions between modules, a batch norm, a dropout behind, and a state that counts passes."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.early = nn.Dropout(dropout)
        self.first = nn.Linear(27, 5)
        self.late = nn.Dropout(0.5)
        self.second = nn.Linear(5, 4)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        x = functional.max_pool2d(torch.tanh(self.norm(self.conv(x))), 2)
        return self.second(self.late(self.first(input=self.early(x).flatten(1))))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def trunk_of(model: nn.Module, layer: str = "first") -> Trunk:
    return Trunk(model, loss, (torch.zeros(1, 2, 8, 8).double(), torch.tensor([1])), layer)


def test_it_computes_what_the_model_computes_before_the_layer() -> None:
    torch.manual_seed(0)
    model = Net().double().requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trunk = trunk_of(model)
    assert not trunk.draws  # the dropout behind the layer does not count
    assert set(trunk.parameters) == {"conv.weight", "conv.bias", "norm.weight", "norm.bias"}
    inputs = torch.randn(1, 2, 8, 8).double().requires_grad_()
    found = trunk(inputs)
    values = model.conv(inputs)
    center, spread = values.mean((2, 3), keepdim=True), values.var((2, 3), correction=0)
    values = (values - center) / (spread[..., None, None] + 1e-5).sqrt()
    expected = functional.max_pool2d(torch.tanh(values), 2).flatten(1)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(1, 27).double()
    ours, theirs = (torch.autograd.grad((x * weights).sum(), inputs)[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs)
    # The model is left as it is, and the trunk counts no passes of its own.
    assert model.passes == 0
    assert not any(value.requires_grad for value in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_gradients_of_its_parameters_are_those_of_the_model() -> None:
    torch.manual_seed(0)
    model = Net().double()
    model.late.p = 0.0
    trunk, inputs = trunk_of(model), torch.randn(1, 2, 8, 8).double()
    names = list(trunk.parameters)
    entering = trunk(inputs)
    (upstream,) = torch.autograd.grad(
        functional.cross_entropy(model.second(model.first(entering)), torch.tensor([1])),
        entering, retain_graph=True,
    )  # fmt: skip
    ours = torch.autograd.grad((entering * upstream).sum(), list(trunk.parameters.values()))
    theirs = torch.autograd.grad(
        loss(model, (inputs, torch.tensor([1]))), [model.get_parameter(name) for name in names]
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_whether_it_draws(dropout: float) -> None:
    assert trunk_of(Net(dropout).double()).draws == (dropout > 0)
