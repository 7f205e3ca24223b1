"""Facts about local training from a module's optimiser."""

from typing import Any

import pytest
import torch

from fedleak.models import SMLP
from fedleak.models.optimiser_facts import local_learning_rate, plain_sgd


class Scheduled(SMLP):
    def configure_optimizers(self) -> Any:
        found = torch.optim.SGD(self.parameters(), lr=0.03)
        return {"optimizer": found, "lr_scheduler": torch.optim.lr_scheduler.StepLR(found, 1)}


class Several(SMLP):
    def configure_optimizers(self) -> Any:
        rates = (0.02, 0.5)
        return [torch.optim.SGD(self.parameters(), lr=rate) for rate in rates], []


@pytest.mark.parametrize(("kind", "expected"), [(SMLP, 0.07), (Scheduled, 0.03), (Several, 0.02)])
def test_learning_rate_of_the_modules_own_optimizer(kind: type[SMLP], expected: float) -> None:
    model = kind(input_shape=(1, 2, 2), num_classes=2, width=2, learning_rate=0.07)
    assert local_learning_rate(model) == expected


# What Lightning takes for one optimiser without a schedule.
WRAPPINGS = (
    lambda optimizer: optimizer,
    lambda optimizer: [optimizer],
    lambda optimizer: ([optimizer], []),
    lambda optimizer: {"optimizer": optimizer, "lr_scheduler": None},
)


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
@pytest.mark.parametrize("wrapped", WRAPPINGS)
def test_plain_sgd(settings: dict[str, Any], expected: bool, wrapped: Any) -> None:
    model = SMLP(input_shape=(1, 2, 2), num_classes=2, width=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **settings)
    model.configure_optimizers = lambda: wrapped(optimizer)
    assert plain_sgd(model) is expected


class OwnStep(torch.optim.SGD):
    """Another optimiser under SGD's name."""


def test_sgd_of_a_part_or_of_another_kind_is_not_plain() -> None:
    model = SMLP(input_shape=(1, 2, 2), num_classes=2, width=2)
    model.configure_optimizers = lambda: OwnStep(model.parameters(), lr=0.1)
    assert not plain_sgd(model)
    model.configure_optimizers = lambda: torch.optim.SGD(model.classifier.parameters(), lr=0.1)
    assert not plain_sgd(model)
    model.features.requires_grad_(False)
    assert plain_sgd(model)


@pytest.mark.parametrize("kind", [Scheduled, Several])
def test_a_schedule_or_several_optimizers_are_no_plain_sgd(kind: type[SMLP]) -> None:
    assert not plain_sgd(kind(input_shape=(1, 2, 2), num_classes=2, width=2))


def test_adam_is_no_plain_sgd() -> None:
    assert not plain_sgd(SMLP(input_shape=(1, 2, 2), num_classes=2, width=2, optimizer="adam"))
