"""Signals from random starts, against the true ones."""

import pytest
import torch

from fedleak.attacks.exact_batches.two_state import Signals, TwoStates
from tests.attacks.exact_batches.batches import Batch, make_batch

WIDTHS = (64, 100, 80, 5)


def states_of(batch: Batch) -> tuple[TwoStates, torch.Tensor]:
    """The equations of the last hidden layer, and the true signals' directions."""
    network, left, found = (
        batch.network,
        batch.remainder,
        batch.samples([*range(len(batch.labels))]),
    )
    trace = network.trace(found.inputs)
    true = network.signals(trace.masks, found.residuals)[-1]
    columns = left.factors(network.hidden - 1).columns
    states = TwoStates(columns, network.weights[-1], torch.Generator().manual_seed(0), 1e-6)
    return states, torch.nn.functional.normalize(true, dim=1)


@pytest.mark.parametrize("widths", [WIDTHS, (64, 80, 3)])
def test_every_signal_that_is_found_is_one_of_the_batch(widths: tuple[int, ...]) -> None:
    batch = make_batch(widths, 8)
    states, true = states_of(batch)
    found = states.search(torch.arange(64) % widths[-1], 0.3)
    assert len(found) >= 6
    own = torch.nn.functional.normalize(found.coordinates @ states.columns.T, dim=1)
    cosines = (own @ true.T).abs()
    assert float(cosines.max(dim=1).values.min()) > 1 - 1e-9
    assert len(set(cosines.argmax(dim=1).tolist())) == len(own)


def test_residuals_are_those_of_the_signals() -> None:
    batch = make_batch(WIDTHS, 8)
    states, true = states_of(batch)
    found = states.search(torch.arange(64) % 5, 0.0)
    own = torch.nn.functional.normalize(found.coordinates @ states.columns.T, dim=1)
    at = (own @ true.T).abs().argmax(dim=1)
    known = batch.samples(list(range(8))).residuals[at]
    cosines = torch.nn.functional.cosine_similarity(found.residuals, known).abs()
    assert float(cosines.min()) > 1 - 1e-9


def test_signals_are_joined_without_repetition() -> None:
    batch = make_batch(WIDTHS, 8)
    states, _ = states_of(batch)
    found = states.search(torch.arange(64) % 5, 0.0)
    flipped = Signals(-2 * found.coordinates, -2 * found.residuals, found.errors)
    assert len(states.joined(found[:3], flipped)) == len(found)
    assert len(states.distinct(flipped)) == len(found)
