"""Facts about local training from a module's optimiser."""

from typing import Any

import pytest
import torch
from torch import nn

from fedleak.models.optimiser_facts import optimizer_facts


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"momentum": 0.9}, False),
        ({"weight_decay": 0.1}, False),
        ({"maximize": True}, False),
    ],
    ids=str,
)
def test_plain_sgd(settings: dict[str, Any], expected: bool) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **settings)
    facts = optimizer_facts(optimizer, model.named_parameters())
    assert facts.is_plain_sgd is expected
    assert facts.rate == 0.1
    for name, value in settings.items():
        assert getattr(facts, name) == value


@pytest.mark.parametrize(
    ("kind", "settings", "name", "own"),
    [
        (torch.optim.Adam, {"betas": (0.8, 0.9)}, "adam", {"betas": (0.8, 0.9), "epsilon": 1e-8}),
        (torch.optim.AdamW, {"eps": 1e-3}, "adamw", {"weight_decay": 0.01, "epsilon": 1e-3}),
        (torch.optim.RMSprop, {"alpha": 0.8}, "rmsprop", {"alpha": 0.8}),
        (torch.optim.Adagrad, {"lr_decay": 0.1}, "adagrad", {"lr_decay": 0.1, "epsilon": 1e-10}),
    ],
)
def test_optimisers_that_have_a_name(
    kind: Any, settings: dict[str, Any], name: str, own: dict[str, Any]
) -> None:
    model = net()
    facts = optimizer_facts(kind(model.parameters(), lr=0.02, **settings), model.named_parameters())
    assert (facts.optimizer, facts.rate) == (name, 0.02)
    for setting, value in own.items():
        assert getattr(facts, setting) == value


class OwnStep(torch.optim.SGD):
    """Another optimiser under SGD's name."""


def test_a_subclass_is_unknown() -> None:
    model = net()
    facts = optimizer_facts(OwnStep(model.parameters(), lr=0.1), model.named_parameters())
    assert (facts.optimizer, facts.rate) == ("unknown", 0.1)


def test_settings_of_groups() -> None:
    model = net()
    first, second = model
    groups = [{"params": first.parameters()}, {"params": second.parameters(), "lr": 0.5}]
    facts = optimizer_facts(torch.optim.SGD(groups, lr=0.1, momentum=0.9), model.named_parameters())
    names = [name for name, _ in model.named_parameters()]
    assert {name: group.rate for name, group in facts.groups(names).items()} == {
        "0.weight": 0.1, "0.bias": 0.1, "1.weight": 0.5, "1.bias": 0.5,
    }  # fmt: skip
    assert facts.of("1.bias").momentum == 0.9


def test_the_rate_is_that_before_the_schedule() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.LinearLR(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.025
    assert optimizer_facts(optimizer, model.named_parameters()).rate == 0.1
