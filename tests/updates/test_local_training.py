"""The facts of a client's local training, and what is refused."""

from typing import Any

import pytest

from fedleak.errors import BadInput
from fedleak.updates.local_training import LocalTraining


def test_the_last_pattern_that_matches_counts() -> None:
    facts = LocalTraining(
        learning_rate=0.1,
        weight_decay=0.5,
        per_parameter={"*.bias": {"weight_decay": 0.0}, "head.*": {"learning_rate": 1.0}},
    )
    found = facts.groups(["body.weight", "body.bias", "head.weight", "head.bias"])
    assert {name: (own.rate, own.weight_decay) for name, own in found.items()} == {
        "body.weight": (0.1, 0.5), "body.bias": (0.1, 0.0), "head.weight": (1.0, 0.5),
        "head.bias": (1.0, 0.5),
    }  # fmt: skip


def test_a_schedule_is_a_factor_on_the_rate() -> None:
    facts = LocalTraining(learning_rate=0.2, schedule=lambda step: 1 / (1 + step))
    assert [facts.rate_at(step) for step in range(3)] == pytest.approx([0.2, 0.1, 0.2 / 3])
    assert not facts.is_plain_sgd
    with pytest.raises(BadInput, match="factor of at least 0, got -1"):
        LocalTraining(learning_rate=0.2, schedule=lambda _: -1).rate_at(0)


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        ({}, True), ({"momentum": 0.9}, False), ({"weight_decay": 1e-4}, False),
        ({"maximize": True}, False), ({"optimizer": "adam"}, False),
        ({"per_parameter": {"*": {"learning_rate": 1.0}}}, False), ({"steps": 3}, True),
    ],
)  # fmt: skip
def test_plain_sgd(settings: dict[str, Any], plain: bool) -> None:
    assert LocalTraining(learning_rate=0.1, **settings).is_plain_sgd is plain


def test_eps_is_the_default_of_the_optimiser() -> None:
    assert LocalTraining(optimizer="adam").epsilon == 1e-8
    assert LocalTraining(optimizer="adagrad").epsilon == 1e-10
    assert LocalTraining(optimizer="adam", eps=0.5).epsilon == 0.5


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"optimizer": "adma"}, "Unknown optimizer `adma`: .*adam"),
        ({"learning_rate": 0.0}, "`learning_rate` to be positive, got 0.0"),
        ({"learning_rate": float("nan")}, "`learning_rate` to be positive, got nan"),
        ({"momentum": -0.1}, "`momentum` to be at least 0, got -0.1"),
        ({"weight_decay": True}, "`weight_decay` to be at least 0, got True"),
        ({"betas": (0.9, 1.0)}, "`betas` from 0 to below 1"),
        ({"betas": (0.9,)}, "`betas` from 0 to below 1"),
        ({"steps": 0}, "`steps` to be at least 1, got 0"),
        ({"batch_size": 1.5}, "`batch_size` to be at least 1, got 1.5"),
        ({"steps": 2, "epochs": 1}, "`steps` or `epochs`, got both"),
        ({"nesterov": True}, "`momentum` above 0 and no `dampening`"),
        ({"schedule": 0.5}, "`schedule` to be a function of the step"),
        ({"per_parameter": {"*": {"weight_dcay": 0.0}}}, "weight_dcay"),
        ({"per_parameter": {"*": {"weight_decay": -1.0}}}, "`weight_decay` to be at least 0"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        LocalTraining(**settings)


def test_no_rate() -> None:
    with pytest.raises(BadInput, match="`learning_rate` where weights"):
        _ = LocalTraining().rate


def test_the_text_has_what_is_not_usual() -> None:
    assert str(LocalTraining(optimizer="adam", learning_rate=0.1, steps=3)) == (
        "adam, learning_rate 0.1, steps 3"
    )
