"""Which entries of an estimate are known, and how they are weighted."""

import torch

from fedleak.attacks.closed_form.estimates import Signal


def test_trust_falls_with_the_error_above_the_median() -> None:
    value = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, 1.0]], dtype=torch.float64)
    error = torch.tensor([[0.001, 0.01, 0.02, 0.04, 1.0, 0.01]], dtype=torch.float64)
    at_most = torch.tensor([[False, False, False, False, False, True]])
    signal = Signal(value, error, at_most, torch.zeros_like(value))
    # The median of four errors is the lower of the two in the middle; 1.0 is not known.
    assert signal.exact.tolist() == [[True, True, True, True, False, False]]
    assert signal.trust().tolist() == [[1.0, 1.0, 0.5, 0.25, 0.0, 0.0]]
    assert signal.trust(0.02).tolist() == [[1.0, 1.0, 1.0, 0.5, 0.0, 0.0]]
    exact = Signal(value, torch.zeros_like(error), at_most, torch.zeros_like(value))
    assert exact.trust().tolist() == [[1.0, 1.0, 1.0, 1.0, 1.0, 0.0]]
    nothing = Signal(value, torch.full_like(error, torch.inf), at_most, torch.zeros_like(value))
    assert nothing.trust().tolist() == [[0.0] * 6]
