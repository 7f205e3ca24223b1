"""Which entries of an estimate are known, and how they are weighted."""

import torch

from fedleak.attacks.closed_form.estimates import Estimate


def test_weights_fall_with_the_error_above_the_median() -> None:
    value = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, 1.0]], dtype=torch.float64)
    error = torch.tensor([[0.001, 0.01, 0.02, 0.04, 1.0, 0.01]], dtype=torch.float64)
    is_bound = torch.tensor([[False, False, False, False, False, True]])
    estimate = Estimate(value, error, is_bound, torch.zeros_like(value))
    # The median of four errors is the lower of the two in the middle; 1.0 is not known.
    assert estimate.exact.tolist() == [[True, True, True, True, False, False]]
    assert estimate.weights().tolist() == [[1.0, 1.0, 0.5, 0.25, 0.0, 0.0]]
    assert estimate.weights(0.02).tolist() == [[1.0, 1.0, 1.0, 0.5, 0.0, 0.0]]
    exact = Estimate(value, torch.zeros_like(error), is_bound, torch.zeros_like(value))
    assert exact.weights().tolist() == [[1.0, 1.0, 1.0, 1.0, 1.0, 0.0]]
    nothing = Estimate(value, torch.full_like(error, torch.inf), is_bound, torch.zeros_like(value))
    assert nothing.weights().tolist() == [[0.0] * 6]
