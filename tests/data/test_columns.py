"""What a column's entries of a sample are in its own unit."""

import math

import pytest
import torch

from fedleak.data.columns import TableColumn, numeric_columns


def test_values_of_both_kinds() -> None:
    town = TableColumn("town", 1, ("Bonn", "Kiel", "Ulm"))
    age = TableColumn("age", 4, mean=40.0, std=10.0)
    sample = torch.tensor([9.0, 0.1, 0.2, 0.7, -1.5])
    assert (town.width, age.width) == (3, 1)
    assert town.text(town.value(sample)) == "Ulm"
    assert age.value(sample) == pytest.approx(25.0)
    assert age.text(25.0) == "25"
    sample[1] = sample[4] = math.nan
    assert [c.text(c.value(sample)) for c in (town, age)] == ["nan", "nan"]


def test_columns_of_numbers_alone() -> None:
    first, second = numeric_columns(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert (first.name, first.start, first.guess, first.spread) == ("0", 0, 2.0, 1.0)
    assert (second.guess, second.spread) == (5.0, 1.0)
