"""The stages together, on networks for which each of them is needed."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fedleak.attacks.exact_batches.pixel_levels import pixel_levels
from fedleak.attacks.exact_batches.recovery import PRECISE, Recovery
from tests.attacks.exact_batches.batches import Batch, make_batch
from tests.attacks.exact_batches.test_closure import true_signals


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


@pytest.mark.parametrize("levels", [True, False])
def test_samples_without_signals_are_found_after_the_others(levels: bool) -> None:
    """Signals of 9 of 12 samples give these, and the rest of the gradient the other 3."""
    batch = make_batch((64, 160, 5), 12, mean=0.5, deviation=0.25)
    recovery = recovered(batch, levels=levels, starts=0)
    assert recovery.remainder.missing == 12
    signals = true_signals(batch, recovery.remainder)
    assert recovery._close(signals[slice(3, None)])
    assert 0 < recovery.remainder.missing <= 3
    recovery.starts = 400
    recovery.run()
    found = recovery.remainder.found
    assert recovery.remainder.missing == 0
    error, at = torch.cdist(found.inputs, batch.inputs.flatten(1)).min(dim=1)
    assert sorted(at.tolist()) == list(range(12))
    assert torch.equal(found.labels, batch.labels[at])
    assert float(error.max()) < 1e-6


@pytest.mark.parametrize("missing", [4, 16])
def test_two_hidden_layers_give_every_sample_whose_signal_is_known(missing: int) -> None:
    """Of 32 samples; what is left of the gradient then gives the others."""
    batch = make_batch((64, 160, 120, 5), 32, mean=0.5, deviation=0.25)
    recovery = recovered(batch, levels=False, starts=0)
    signals = true_signals(batch, recovery.remainder)
    assert len(signals) == 32
    recovery._add("signals", recovery._descended(signals[slice(missing, None)], True, 0))
    assert recovery.remainder.missing == missing
    recovery.starts = 400
    recovery.run()
    found = recovery.remainder.found
    error, at = torch.cdist(found.inputs, batch.inputs.flatten(1)).min(dim=1)
    assert sorted(at.tolist()) == list(range(32))
    assert torch.equal(found.labels, batch.labels[at])
    assert float(error.max()) < 1e-6


def test_samples_wait_for_signals_that_make_them_exact() -> None:
    """In float32 bounds are large while 3 signals are missing, and no levels make up for it."""
    batch = make_batch((64, 160, 5), 12, mean=0.5, deviation=0.25, kind=torch.float32)
    recovery = recovered(batch, levels=False, starts=0)
    signals = true_signals(batch, recovery.remainder)
    recovery._close(signals[slice(3, None)])
    found = recovery.remainder.found
    assert len(found) < 9
    assert bool((found.bounds <= PRECISE * found.inputs.norm(dim=1)).all())
    recovery._close(true_signals(batch, recovery.remainder))
    assert recovery.remainder.missing == 0
    assert float(recovery.remainder.found.bounds.max()) < 5e-3


@pytest.mark.parametrize("examples", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_no_certificate_is_false_whatever_signals_are_missing(examples: int) -> None:
    @settings(
        max_examples=examples, deadline=None, derandomize=True,
        phases=(Phase.explicit, Phase.generate),
    )  # fmt: skip
    @given(
        classes=st.sampled_from([2, 3, 5, 8]),
        width=st.sampled_from([60, 120]),
        number=st.integers(2, 14),
        missing=st.integers(0, 6),
        seed=st.integers(0, 999),
        kind=st.sampled_from([torch.float32, torch.float64]),
        std=st.sampled_from([None, 0.1, 0.3]),
        levels=st.booleans(),
        last=st.booleans(),
        hidden=st.sampled_from([1, 1, 2]),
    )
    def hold(classes, width, number, missing, seed, kind, std, levels, last, hidden) -> None:
        batch = make_batch(
            (64, *[width] * hidden, classes), number, seed=seed, kind=kind, std=std, mean=0.5,
            deviation=0.25,
        )  # fmt: skip
        if not any(bool(value.any()) for value in batch.gradient.values()):
            return
        recovery = recovered(batch, levels=levels, starts=0)
        signals = true_signals(batch, recovery.remainder)
        if hidden == 1:
            recovery._close(signals[slice(missing, None)], last=last)
        else:
            recovery._add("signals", recovery._descended(signals[slice(missing, None)], True, 0))
        found = recovery.remainder.found
        certified = found.bounds < 0.04  # 0.01 on the scale before normalisation
        true = batch.inputs.flatten(1).double()
        error, at = (found.inputs[:, None] - true).norm(dim=2).min(dim=1)
        right = (found.labels == batch.labels[at]) & (error <= found.bounds + 1e-6)
        assert bool(right[certified].all())
        assert len(set(at[certified].tolist())) == int(certified.sum())

    hold()
