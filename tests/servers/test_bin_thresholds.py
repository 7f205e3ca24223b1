"""Thresholds are quantiles: compared with those of a known law and with fresh samples."""

import itertools
import math

import pytest
import torch

from fedleak.errors import BadInput
from fedleak.servers.bin_thresholds import Division, bin_thresholds, tail_shares


def exponential(number: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return -torch.rand(number, generator=draw, dtype=torch.float64).log()


def test_thresholds_are_the_quantiles_of_the_law() -> None:
    found = bin_thresholds(exponential(20000, 0), 20, 1000, 0.05)
    shares = [0.05 + (19 - j) / 1000 for j in range(20)]
    assert tail_shares(20, 1000, 0.05).tolist() == pytest.approx(shares)
    expected = torch.tensor([-math.log(share) for share in shares], dtype=torch.float64)
    # The quantile's own standard error is sqrt((1 - p) / p / 20000), some 0.03.
    assert float((found - expected).abs().max()) < 0.1


def test_a_fresh_sample_is_expected_in_each_bin() -> None:
    thresholds = bin_thresholds(exponential(3000, 1), 120, 4000, 0.05)
    counts = []
    for seed in range(10):
        values = exponential(4000, 10 + seed)
        counts += [
            int(((values > low) & (values <= high)).sum())
            for low, high in itertools.pairwise(thresholds)
        ]
    alone = sum(count == 1 for count in counts) / len(counts)
    assert sum(counts) / len(counts) == pytest.approx(1.0, abs=0.15)
    assert alone == pytest.approx(math.exp(-1), abs=0.05)


def test_infinite_values_count_as_above_all() -> None:
    values = exponential(5000, 2)
    with_infinite = torch.cat([values, torch.full((100,), math.inf, dtype=torch.float64)])
    found = bin_thresholds(with_infinite, 10, 500, 0.1)
    # A share of 0.1 of all is one of 0.0818 of the finite ones.
    assert float(found[-1]) == pytest.approx(-math.log((0.1 * 5100 - 100) / 5000), abs=0.15)
    assert found.isfinite().all()


def test_thresholds_ascend() -> None:
    values = exponential(80, 3).round(decimals=1)
    assert bool((bin_thresholds(values, 30, 100, 0.02).diff() >= 0).all())


def test_refusals() -> None:
    with pytest.raises(BadInput, match=r"at least 30 public samples .* got 29"):
        bin_thresholds(exponential(29, 0), 10, 100, 0.05)
    with pytest.raises(BadInput, match="more than 126 samples of a client for 120 bins"):
        tail_shares(120, 100, 0.05)


def test_a_division_compares_a_feature_or_a_ratio() -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 0.0]])
    limits = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    assert Division(0, None, limits).of(features).tolist() == [1.0, 3.0, 0.0]
    ratio = Division(0, 1, limits)
    assert ratio.of(features).tolist() == [0.5, math.inf, 0.0]
    assert ratio.middles.tolist() == [0.5, 2.0]
    for one in (ratio, Division(0, None, limits)):
        again = Division.from_memory(one.to_memory())
        assert (again.feature, again.reference, again.columns) == (
            one.feature, one.reference, one.columns,
        )  # fmt: skip
        assert torch.equal(again.thresholds, limits)
