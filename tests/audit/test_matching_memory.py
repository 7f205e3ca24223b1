"""Memory of gradient matching, against counts by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from fedleak.audit.matching_memory import OF_FORWARD, WEIGHTS_OF_A_STEP, matching_bytes
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.local_training import LocalTraining


def summed(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    found: Tensor = model(batch[0]).sum()
    return found


def facts(model: nn.Module, samples: int, epochs: int) -> Knowledge:
    training = LocalTraining(learning_rate=0.1, batch_size=5, epochs=epochs)
    return Knowledge(
        model, (6,), loss=summed, protocol="fedavg", num_samples=samples, local_training=training
    )  # fmt: skip


@pytest.mark.parametrize(("samples", "epochs", "steps"), [(10, 1, 2), (12, 1, 3), (10, 4, 8)])
def test_it_is_what_autograd_keeps(samples: int, epochs: int, steps: int) -> None:
    model = nn.Sequential(nn.Linear(6, 3, bias=False), nn.Sigmoid())
    # A linear layer keeps its six inputs, a sigmoid its three outputs, of four bytes each.
    of_samples = 4 * (6 + 3) * samples * epochs
    expected = OF_FORWARD * of_samples + WEIGHTS_OF_A_STEP * steps * 4 * 18
    assert matching_bytes(facts(model, samples, epochs)) == expected


def test_a_loss_that_cannot_be_computed_takes_no_known_memory() -> None:
    assert matching_bytes(facts(nn.Linear(7, 3), 10, 1)) == math.inf


def test_the_model_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: True for name, _ in model.named_modules()}
    assert math.isfinite(matching_bytes(facts(model, 10, 1)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: part.training for name, part in model.named_modules()} == modes
