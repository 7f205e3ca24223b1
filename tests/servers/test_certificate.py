"""What one sample's sum does between two rounds, and what those of several do."""

import math

import pytest
import torch

from fedleak.servers.certificate import labels_of, turned, usual_share
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.local_training import LocalTraining
from tests.servers.small_client import SHAPE, net


def test_turned_is_one_minus_the_cosine() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    angle = 1e-6
    second = torch.tensor(
        [[3.0, 3.0], [-math.cos(angle), -math.sin(angle)], [0.0, -5.0], [1.0, 0.0]],
        dtype=torch.float64,
    )
    expected = [1 - math.sqrt(0.5), angle**2 / 2, 0.0, 1.0]
    assert turned(first, second).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-30)
    # So are sums whose squares underflow.
    assert turned(1e-200 * first, 1e-250 * second).tolist() == pytest.approx(
        expected, rel=1e-6, abs=1e-30
    )


def test_mixtures_turn_and_singles_do_not() -> None:
    draw = torch.Generator().manual_seed(0)
    samples = torch.rand(400, 2, 50, generator=draw, dtype=torch.float64)
    before, after = (torch.rand(400, 2, 1, generator=draw) + 0.1 for _ in range(2))
    mixed = turned((before * samples).sum(1), (after * samples).sum(1))
    alone = turned((before * samples)[:, 0], (after * samples)[:, 0])
    assert float(alone.max()) < 1e-14
    assert float(mixed.quantile(0.05)) > 1e-6


def test_labels_and_lengths() -> None:
    signals = [torch.tensor([1.0, -0.5, 0.2]), torch.tensor([0.4, 1.0, -1.0])]
    label = torch.tensor([0, 1, 2, 1, 1])
    many = torch.tensor([1.0, 1.0, 1.0, 2.0, 1.0])
    place = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5])
    strengths = [3.0 * many * signals[0][label], 3.0 * many * place * signals[1][label]]
    found = labels_of(strengths, signals, 3.0)
    # The fourth is of two samples; the fifth was in another place of the epoch.
    assert found.labels.tolist() == [0, 1, 2, -1, -1]
    assert found.lengths.tolist() == pytest.approx([1.0, 1.0, 1.0, 2.0, 0.0])
    assert labels_of(strengths, signals, None).lengths.tolist() == [0.0] * 5


def test_a_class_without_signal_has_no_label() -> None:
    signals = [torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0])]
    found = labels_of([torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0])], signals, 1.0)
    assert found.labels.tolist() == [-1, 1]


OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), {"momentum": 0.9}),
    "adam": (lambda p: torch.optim.Adam(p, lr=0.1), {"optimizer": "adam"}),
    "adamw": (
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=1e-4),
        {"optimizer": "adamw", "weight_decay": 1e-4},
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_usual_share_is_that_of_a_sample_in_the_middle_batch(name: str) -> None:
    make, told = OPTIMIZERS[name]
    facts = Knowledge(
        net(), SHAPE, num_samples=64, protocol="fedavg",
        local_training=LocalTraining(learning_rate=0.1, batch_size=8, epochs=1, **told),
    )  # fmt: skip
    weight = torch.zeros((), requires_grad=True)
    optimizer = make([weight])
    for step in range(8):
        weight.grad = torch.tensor(1e-25 / 8 if step == 3 else 0.0)
        optimizer.step()
    assert usual_share(facts) == pytest.approx(-weight.item() / 1e-25, rel=1e-4)


def test_no_share_is_known_without_the_batch_size() -> None:
    training = LocalTraining(learning_rate=0.1)
    facts = Knowledge(net(), SHAPE, num_samples=64, protocol="fedavg", local_training=training)
    assert usual_share(facts) is None
