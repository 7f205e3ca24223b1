"""The cascade on batches in which units have a sample for themselves."""

import pytest
import torch

from fedleak.attacks.exact_batches.cascade import Cascade
from fedleak.attacks.exact_batches.pixel_levels import pixel_levels
from tests.attacks.exact_batches.batches import Batch, make_batch


def cascade_of(batch: Batch, *, levels: bool) -> Cascade:
    low, high = (torch.full((64,), bound, dtype=torch.float64) for bound in (0, 1))
    own = pixel_levels(batch.knowledge, batch.network.unit) if levels else None
    return Cascade(batch.remainder, (low, high), own)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
def test_it_finds_what_is_alone_and_no_more(bias: bool, kind: torch.dtype) -> None:
    batch = make_batch((64, 150, 5), 8, bias=bias, std=0.5, kind=kind)
    cascade = cascade_of(batch, levels=True)
    number = cascade.run()
    found = cascade.remainder.found
    assert number == len(found) >= 6
    distances = torch.cdist(found.inputs, batch.inputs.flatten(1).double())
    at = distances.argmin(dim=1)
    assert float(distances.min(dim=1).values.max()) < 1e-6
    assert torch.equal(found.labels, batch.labels[at])
    assert len(set(at.tolist())) == number
    assert float(found.bounds.max()) == 0


def test_without_levels_the_bias_gives_the_factor() -> None:
    batch = make_batch((64, 150, 5), 8, std=0.5)
    cascade = cascade_of(batch, levels=False)
    assert cascade.run() >= 6
    found = cascade.remainder.found
    error, at = torch.cdist(found.inputs, batch.inputs.flatten(1)).min(dim=1)
    assert bool((error <= found.bounds).all())
    assert float(found.bounds.max()) < 1e-6
    assert torch.equal(found.labels, batch.labels[at])


def test_without_bias_and_levels_there_is_no_factor() -> None:
    cascade = cascade_of(make_batch((64, 150, 5), 8, bias=False, std=0.5), levels=False)
    assert cascade.run() == 0


def test_a_sample_that_occurs_twice_is_counted() -> None:
    batch = make_batch((64, 150, 5), 5, std=0.5)
    inputs, labels = (torch.cat([v, v[:1]]) for v in (batch.inputs, batch.labels))
    loss = torch.nn.functional.cross_entropy(batch.model(inputs), labels)
    values = torch.autograd.grad(loss, list(batch.model.parameters()))
    double = batch._replace(
        inputs=inputs, labels=labels, gradient=dict(zip(batch.gradient, values, strict=True)),
        knowledge=type(batch.knowledge)(**vars(batch.knowledge) | {"num_samples": 6}),
    )  # fmt: skip
    cascade = cascade_of(double, levels=True)
    cascade.run()
    assert cascade.remainder.missing == 0
    assert sorted(cascade.remainder.found.counts.tolist()) == [1, 1, 1, 1, 2]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
def test_the_unconditional_bound_holds_for_images_near_the_levels(
    bias: bool, kind: torch.dtype
) -> None:
    batch = make_batch((64, 150, 5), 6, bias=bias, std=0.3, kind=kind)
    generator = torch.Generator().manual_seed(1)
    moved = 5e-5 * torch.randn(batch.inputs.shape, generator=generator, dtype=kind)
    inputs = (batch.inputs + moved).clamp(0, 1)
    loss = torch.nn.functional.cross_entropy(batch.model(inputs), batch.labels)
    values = torch.autograd.grad(loss, list(batch.model.parameters()))
    near = batch._replace(gradient=dict(zip(batch.gradient, values, strict=True)))
    cascade = cascade_of(near, levels=True)
    assert cascade.run() >= 1
    found = cascade.remainder.found
    error = torch.cdist(found.inputs, inputs.flatten(1).double()).min(dim=1).values
    assert bool((error <= found.unconditional + 1e-7).all())
    assert float(found.unconditional.min()) < 1e-2
    # With a bias, no factor is left to be chosen, and the samples are seen to be off the levels.
    assert not bias or bool((found.bounds >= error).all())
