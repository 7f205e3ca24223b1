"""The stages together, on networks for which each of them is needed."""

import pytest
import torch

from fedleak.attacks.exact_batches.pixel_levels import pixel_levels
from fedleak.attacks.exact_batches.recovery import Recovery
from tests.attacks.exact_batches.batches import Batch, make_batch


def recovered(batch: Batch, *, levels: bool = True, rows: int = 0, starts: int = 400) -> Recovery:
    low, high = (bound.double().expand(1, 8, 8).flatten() for bound in batch.knowledge.bounds)
    network = batch.network
    bias = batch.gradient.get(f"{network.names[-1]}.bias")
    recovery = Recovery(
        remainder=batch.remainder, bounds=(low, high),
        levels=pixel_levels(batch.knowledge, network.unit) if levels else None,
        shape=(1, 8, 8), head_bias=None if bias is None else bias.double(),
        generator=torch.Generator().manual_seed(0), starts=starts, rows=rows,
        progress=lambda found: None,
    )  # fmt: skip
    recovery.run()
    return recovery


@pytest.mark.parametrize("levels", [True, False])
@pytest.mark.parametrize(
    ("widths", "stage"),
    [
        ((64, 200, 160, 5), "signals"),
        ((64, 160, 5), "closure"),
        ((64, 200, 160, 160, 4), "signals"),
    ],
)
def test_default_initialisation(widths: tuple[int, ...], stage: str, levels: bool) -> None:
    batch = make_batch(widths, 20, mean=0.5, deviation=0.25)
    recovery = recovered(batch, levels=levels)
    found = recovery.remainder.found
    assert recovery.remainder.missing == 0
    assert stage in recovery.sources
    error, at = torch.cdist(found.inputs, batch.inputs.flatten(1)).min(dim=1)
    assert sorted(at.tolist()) == list(range(20))
    assert torch.equal(found.labels, batch.labels[at])
    assert float(error.max()) < 1e-6
    if not levels:
        assert bool((error <= found.bounds).all())


def test_float32() -> None:
    batch = make_batch((64, 100, 80, 5), 8, mean=0.5, deviation=0.25, kind=torch.float32)
    recovery = recovered(batch)
    assert recovery.remainder.missing == 0
    at = torch.cdist(recovery.remainder.found.inputs, batch.inputs.flatten(1).double()).argmin(1)
    assert sorted(at.tolist()) == list(range(8))


def test_without_starts_there_are_no_signals() -> None:
    recovery = recovered(make_batch((64, 40, 30, 5), 12), starts=0)
    assert "signals" not in recovery.sources
