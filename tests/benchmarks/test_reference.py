"""The plain loop does the same work as the engine with which it is compared."""

import pytest
import torch

from benchmarks import reference
from benchmarks.victims import make_victims
from fedleak.attacks import IGA
from fedleak.attacks.base import SALT
from fedleak.models import SMLP, LeNet
from fedleak.runtime.seeds import derive_seed


@pytest.mark.parametrize("kind", [SMLP, LeNet])
def test_the_plain_loop_and_the_engine_reach_the_same_cost(kind):
    updates, knowledge, _ = make_victims(kind, 1)
    target, labels = tuple(updates[0].received.values()), knowledge[0].labels
    # The start that the engine draws, in the box in which it puts it.
    generator = torch.Generator().manual_seed(derive_seed(0, 1, 0, SALT))
    start = torch.randn(1, *knowledge[0].input_shape, generator=generator)
    start = start.clamp(*knowledge[0].bounds)
    found = reference.attack(
        knowledge[0].model, target, labels, start, knowledge[0].bounds, iterations=10
    )
    dummy = reference.dummy_gradient(knowledge[0].model, found, labels, {})
    cost = reference.cosine_distance(dummy, target).item()
    first = reference.dummy_gradient(knowledge[0].model, start, labels, {})
    assert cost < reference.cosine_distance(first, target).item()
    # The sign of a gradient near 0 is a matter of rounding, so not to the last digit.
    assert IGA(iterations=10)(updates, knowledge)[0].cost == pytest.approx(cost, rel=0.02)
