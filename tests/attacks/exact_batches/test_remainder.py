"""What is left of a gradient against the gradient of the samples that are left."""

from dataclasses import replace

import pytest
import torch

from fedleak.attacks.exact_batches.remainder import ROUNDING
from tests.attacks.exact_batches.batches import make_batch


@pytest.mark.parametrize("widths", [(64, 48, 5), (64, 40, 30, 5)])
def test_it_is_the_part_of_the_other_samples(widths: tuple[int, ...]) -> None:
    batch = make_batch(widths)
    left, others = batch.remainder, batch.remainder
    left.add(batch.samples([4]))
    left.add(batch.samples([0, 2]))
    others.add(batch.samples([1, 3, 5]))
    assert left.missing == 3
    for layer in range(len(widths) - 2):
        torch.testing.assert_close(
            left.matrix(layer) + others.matrix(layer), left.gradients[layer], atol=1e-12, rtol=0
        )
        assert left.factors(layer).rank == 3
    assert left.rank() == 3


def test_with_all_samples_nothing_is_left() -> None:
    batch = make_batch()
    left = batch.remainder
    left.add(batch.samples(list(range(6))))
    assert left.factors(0).rank == left.rank() == left.missing == 0
    assert float(left.matrix(0).abs().max()) < 1e-15


def test_counts_are_samples() -> None:
    batch = make_batch()
    left = batch.remainder
    twice = batch.samples([0])
    left.add(replace(twice, counts=torch.tensor([2])))
    assert left.missing == 4


def test_the_model_of_rounding_is_near_the_rounding() -> None:
    """Of a float32 gradient, compared with the same in float64."""
    batch = make_batch((64, 48, 5), 24, kind=torch.float32)
    exact = make_batch((64, 48, 5), 24)
    model = batch.model.double()
    loss = torch.nn.functional.cross_entropy(model(batch.inputs.double()), batch.labels)
    (wide,) = torch.autograd.grad(loss, [model[1].weight])
    assert not torch.equal(wide, exact.gradient["1.weight"])
    error = (batch.gradient["1.weight"].double() - wide).square().mean(dim=1).sqrt()
    told = make_batch((64, 48, 5), 24, kind=torch.float32).remainder.rounding(0)
    ratio = (error / told)[told > 0]
    assert 0.05 < float(ratio.median()) * ROUNDING < 5
