"""What is known of entries, turned by the step that they were sent in."""

import math

import pytest
import torch

from fedleak.updates.entries import Entries, SentUpdate


def test_entries_of_a_step_are_those_of_the_gradient():
    entries = Entries(*(torch.tensor([value]) for value in (1.0, 0.5, math.inf, 0.25)))
    turned = entries.times(-2.0).minus(torch.tensor([1.0]))
    parts = turned.value, turned.lowest, turned.highest, turned.deviation
    assert [float(part) for part in parts] == [-3.0, -math.inf, -2.0, 0.5]
    assert float(entries.outside(torch.tensor([0.2]))) == pytest.approx(-0.8)
    bounded = entries.between(torch.tensor([True]), 0.5, math.inf)
    assert float(bounded.outside(torch.tensor([0.2]))) == pytest.approx(-0.3)
    assert float(bounded.outside(torch.tensor([7.0]))) == 0.0


def test_an_estimate_without_bounds_is_compared_itself():
    noisy = Entries.noisy(torch.tensor([1.0]), 0.5)
    assert float(noisy.outside(torch.tensor([1.25]))) == pytest.approx(0.25)
    assert noisy.measured.tolist() == [True]
    assert noisy.exact.tolist() == [False]
    nothing = noisy.between(torch.tensor([True]), -math.inf, math.inf)
    assert float(nothing.outside(torch.tensor([9.0]))) == 0.0
    assert nothing.measured.tolist() == [False]


def test_a_gradient_has_no_rounding_and_a_change_has_that_of_its_weights():
    value = {"a": torch.zeros(3)}
    assert SentUpdate(value, torch.nn.Linear(1, 1)).margin("a").tolist() == [0.0] * 3
    rounded = SentUpdate(value, torch.nn.Linear(1, 1), {"a": torch.full((3,), 0.1)})
    assert rounded.margin("a").tolist() == pytest.approx([0.1] * 3)
