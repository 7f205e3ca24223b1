"""Inputs from all signals, with rows that do not fit."""

import torch

from fedleak.attacks.exact_batches.closure import closed_inputs


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
    found, bounds = closed_inputs(matrix, signals)
    torch.testing.assert_close(found, inputs, rtol=0, atol=1e-9)
    assert float(bounds.max()) < 1e-8


def test_the_bound_holds_with_noise() -> None:
    for noise in (1e-6, 1e-3):
        matrix, signals, inputs = problem(noise=noise)
        found, bounds = closed_inputs(matrix, signals)
        errors = (found - inputs).norm(dim=1)
        assert bool((errors <= bounds).all())
        assert float(bounds.max()) < 100 * noise


def test_with_a_signal_missing_its_rows_do_not_count() -> None:
    """A sample that is active in a third of the rows is not known."""
    matrix, signals, inputs = problem()
    signals[0, 20:] = 0
    matrix = signals.T @ inputs
    found, bounds = closed_inputs(matrix, signals[1:])
    torch.testing.assert_close(found, inputs[1:], rtol=0, atol=1e-9)
    assert float(bounds.max()) < 1e-8


def test_a_sample_without_rows_has_no_bound() -> None:
    matrix, signals, _ = problem()
    signals[2] = 0
    _, bounds = closed_inputs(matrix, signals)
    assert not bool(bounds[2].isfinite())
