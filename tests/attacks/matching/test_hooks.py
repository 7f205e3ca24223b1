"""Hooks note the same inputs whether a layer is called by position or by keyword."""

import pytest
import torch
from torch import nn

from fedleak.attacks.matching.hooks import BatchNormHooks, InputHooks, LinearHooks


@pytest.mark.parametrize("keyword", [False, True])
def test_inputs_and_statistics_that_the_hooks_note(keyword: bool) -> None:
    model = nn.ModuleDict({"norm": nn.BatchNorm1d(3), "head": nn.Linear(3, 2)})
    norms, inputs, linear = BatchNormHooks(model), InputHooks(model, ["head"]), LinearHooks(model)
    value = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    norms.start()
    inputs.start()
    linear.start({"head": [torch.zeros(5, 2)]}, {})
    for layer in model.values():
        _ = layer(input=value) if keyword else layer(value)
    mean, variance = norms.statistics["norm"]
    torch.testing.assert_close(mean, value.mean(dim=0))
    torch.testing.assert_close(variance, value.var(dim=0))
    assert inputs.entered["head"] is value
    assert linear.inputs["head"] == [value]


def test_layers_that_share_a_weight_have_no_linear_hook() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    tap = LinearHooks(model)
    assert list(tap._layers) == ["2"]
