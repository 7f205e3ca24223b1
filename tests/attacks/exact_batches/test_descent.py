"""Samples from single signals, with the others of the batch unknown."""

import pytest
import torch

from fedleak.attacks.exact_batches.descent import descend
from fedleak.attacks.exact_batches.two_state import Signals
from tests.attacks.exact_batches.batches import Batch, make_batch


def true_signals(batch: Batch, chosen: list[int], factor: float) -> Signals:
    network, found = batch.network, batch.samples(chosen)
    trace = network.trace(found.inputs)
    signals = network.signals(trace.masks, found.residuals)[-1]
    columns = batch.remainder.factors(network.hidden - 1).columns
    return Signals(factor * signals @ columns, factor * found.residuals, torch.zeros(len(chosen)))


@pytest.mark.parametrize("widths", [(64, 90, 70, 5), (64, 90, 80, 70, 4)])
@pytest.mark.parametrize("factor", [-3.0, 0.2])
def test_one_signal_is_enough(widths: tuple[int, ...], factor: float) -> None:
    batch = make_batch(widths, 8, mean=0.5, deviation=0.25)
    for at in (0, 5):
        (found,) = descend(batch.remainder, true_signals(batch, [at], factor), [0])
        torch.testing.assert_close(found.inputs, batch.inputs[[at]].flatten(1), rtol=0, atol=1e-8)
        assert found.labels.tolist() == [int(batch.labels[at])]
        error = (found.inputs - batch.inputs[[at]].flatten(1)).norm()
        assert float(error) <= float(found.bounds) < 1e-5


def test_the_signal_has_its_true_size() -> None:
    batch = make_batch((64, 90, 70, 5), 8)
    (found,) = descend(batch.remainder, true_signals(batch, [3], -7.0), [0])
    network, own = batch.network, batch.samples([3])
    trace = network.trace(own.inputs)
    true = network.signals(trace.masks, own.residuals)[-1]
    torch.testing.assert_close(found.signals, true, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("missing", [0, 4, 10])
def test_signals_of_others_leave_fewer_unknowns(missing: int) -> None:
    """Of 40 samples, of which each has 27 to 49 inactive units."""
    batch = make_batch((64, 200, 80, 5), 40, mean=0.5, deviation=0.25)
    known = list(range(40 - missing))
    found = descend(batch.remainder, true_signals(batch, known, 1.0), known)
    inputs = torch.cat([sample.inputs for sample in found])
    torch.testing.assert_close(inputs, batch.inputs[known].flatten(1), rtol=0, atol=1e-6)


def test_with_as_many_samples_as_units_there_are_too_few_equations() -> None:
    batch = make_batch((64, 14, 12, 5), 9)
    signals = true_signals(batch, [0], 1.0)
    for found in descend(batch.remainder, signals, [0]):
        assert not float(found.bounds) < 1e-3
