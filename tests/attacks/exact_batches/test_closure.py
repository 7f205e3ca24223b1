"""Inputs from all signals or from most of them, and from rows of which some do not fit."""

import pytest
import torch

from fedleak.attacks.exact_batches.closure import close, robust_least_squares
from fedleak.attacks.exact_batches.remainder import Remainder
from fedleak.attacks.exact_batches.two_state import Signals, TwoStates
from tests.attacks.exact_batches.batches import Batch, make_batch


def problem(*, noise: float = 0.0):
    generator = torch.Generator().manual_seed(0)
    signals = torch.randn(6, 60, generator=generator, dtype=torch.float64)
    signals *= torch.rand(6, 60, generator=generator) < 0.5
    inputs = torch.rand(6, 30, generator=generator, dtype=torch.float64)
    matrix = signals.T @ inputs
    return matrix + noise * torch.randn(matrix.shape, generator=generator), signals, inputs


def test_flipped_rows_do_not_count() -> None:
    matrix, signals, inputs = problem()
    matrix[:8] += 0.3 * torch.rand(8, 30, generator=torch.Generator().manual_seed(1))
    found, spreads = robust_least_squares(matrix, signals)
    torch.testing.assert_close(found, inputs, rtol=0, atol=1e-9)
    assert float(spreads.max()) < 1e-9


def test_spreads_are_those_of_the_errors() -> None:
    for noise in (1e-6, 1e-3):
        matrix, signals, inputs = problem(noise=noise)
        found, spreads = robust_least_squares(matrix, signals)
        errors = (found - inputs).norm(dim=1)
        assert bool((errors <= 2 * spreads).all())
        assert float(spreads.max()) < 20 * noise


def test_with_a_signal_missing_its_rows_do_not_count() -> None:
    """A sample that is active in a third of the rows is not known."""
    matrix, signals, inputs = problem()
    signals[0, 20:] = 0
    matrix = signals.T @ inputs
    found, spreads = robust_least_squares(matrix, signals[1:])
    torch.testing.assert_close(found, inputs[1:], rtol=0, atol=1e-9)
    assert float(spreads.max()) < 1e-9


def test_a_sample_without_rows_is_not_determined() -> None:
    matrix, signals, _ = problem()
    signals[2] = 0
    _, spreads = robust_least_squares(matrix, signals)
    assert not bool(spreads[2].isfinite())


def test_a_sample_with_one_row_is_not_determined() -> None:
    """That row fits with whatever value, a wrong one as well."""
    matrix, signals, inputs = problem()
    signals[2, 1:] = 0
    signals[2, 0] = 1.0
    matrix = signals.T @ inputs
    matrix[0] += 1.0
    found, spreads = robust_least_squares(matrix, signals)
    assert spreads.isfinite().tolist() == [True, True, False, True, True, True]
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(found[others], inputs[others], rtol=0, atol=1e-9)


def test_as_many_rows_as_samples_determine_nothing() -> None:
    matrix, signals, _ = problem()
    _, spreads = robust_least_squares(matrix[:10], signals[:, :10])
    assert not bool(spreads.isfinite().any())


def true_signals(batch: Batch, remainder: Remainder) -> Signals:
    """Signals that the model gives for the batch, up to factors, as exact as the search's."""
    network = batch.network
    found = batch.samples([*range(len(batch.labels))])
    own = network.signals(network.trace(found.inputs).masks, found.residuals)[-1]
    columns = remainder.factors(network.hidden - 1).columns
    narrow = network.unit > 1e-12
    states = TwoStates(
        columns, network.weights[-1], torch.Generator().manual_seed(0), 1e-3 if narrow else 1e-6
    )
    scale = -found.residuals.gather(1, found.labels[:, None])
    coordinates = own @ columns / (scale * network.scale)
    return states.polish(coordinates, found.residuals / scale, found.labels)


def errors_of(batch: Batch, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (inputs[:, None] - batch.inputs.flatten(1).double()).norm(dim=2).min(dim=1)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_the_softmax_makes_up_for_missing_signals(missing: int, kind: torch.dtype) -> None:
    """Of 5 classes, up to 3 missing signals."""
    batch = make_batch((64, 160, 5), 14, kind=kind, mean=0.5, deviation=0.25)
    remainder = batch.remainder
    signals = true_signals(batch, remainder)
    assert len(signals) == 14
    found = close(remainder, signals[slice(missing, None)])
    error, at = errors_of(batch, found.inputs)
    right = error < (5e-3 if kind == torch.float32 else 1e-8)
    assert len(set(at[right].tolist())) == 14 - missing
    assert torch.equal(found.labels[right], batch.labels[at[right]])
    assert bool((error <= found.bounds)[right].all())
    assert float(error[right].median()) < (3e-4 if kind == torch.float32 else 1e-9)


@pytest.mark.parametrize("missing", [2, 3])
def test_rows_without_missing_samples_are_enough_for_some(missing: int) -> None:
    """Of 3 classes the softmax makes up for one missing signal; here more are missing."""
    batch = make_batch((64, 400, 3), 8, mean=0.5, deviation=0.25)
    with torch.no_grad():
        batch.model[1].bias -= 0.5
    loss = batch.knowledge.loss(batch.model, (batch.inputs, batch.labels))
    values = torch.autograd.grad(loss, list(batch.model.parameters()))
    batch = batch._replace(gradient=dict(zip(batch.gradient, values, strict=True)))
    remainder = batch.remainder
    found = close(remainder, true_signals(batch, remainder)[slice(missing, None)])
    error, at = errors_of(batch, found.inputs)
    assert len(set(at.tolist())) == 8 - missing
    assert bool((error <= found.bounds + 1e-9).all())
    assert float(error.max()) < 1e-6


def test_a_vector_that_is_no_signal_is_left_out() -> None:
    batch = make_batch((64, 160, 5), 10, mean=0.5, deviation=0.25)
    remainder = batch.remainder
    signals = true_signals(batch, remainder)
    _, left_out = errors_of(batch, close(remainder, signals[slice(0, 1)]).inputs)
    signals.residuals[0] = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0])
    found = close(remainder, signals)
    error, at = errors_of(batch, found.inputs)
    assert len(set(at[error < 1e-8].tolist())) == 9
    assert not set(left_out.tolist()) & set(at[error < 1e-8].tolist())


def test_without_signals_there_is_nothing() -> None:
    batch = make_batch((64, 160, 5), 6)
    remainder = batch.remainder
    assert len(close(remainder, true_signals(batch, remainder)[slice(0, 0)]).labels) == 0
