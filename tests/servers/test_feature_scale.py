"""The scale of features that are known up to a factor."""

import pytest
import torch

from fedleak.servers.bin_thresholds import Division
from fedleak.servers.feature_scale import linear_predictor, scaled_features


def some_features(number: int, seed: int) -> torch.Tensor:
    """Twelve numbers of which the last is 1 and the first the sum of two others."""
    draw = torch.Generator().manual_seed(seed)
    found = torch.rand(number, 12, generator=draw, dtype=torch.float64)
    found[:, 11] = 1.0
    found[:, 0] = found[:, 1] + found[:, 2]
    return found


def test_a_linear_relation_is_found() -> None:
    features = some_features(500, 0)
    weights = linear_predictor(features, features[:, 0], [0])
    assert weights[0] == 0
    assert weights[[1, 2]].tolist() == pytest.approx([1.0, 1.0], abs=0.1)


@pytest.mark.parametrize("reference", [None, 11])
def test_features_come_back_at_their_scale(reference: int | None) -> None:
    public, own = some_features(800, 1), some_features(39, 2)
    limits = torch.linspace(0.4, 1.6, 40, dtype=torch.float64)
    division = Division(0, reference, limits)
    own[:, 1] = division.middles / 2
    own[:, 2] = division.middles / 2
    own[:, 0] = division.middles
    draw = torch.Generator().manual_seed(3)
    factors = 1e-20 * torch.randn(39, 1, generator=draw, dtype=torch.float64)
    found = scaled_features(factors * own, public, division)
    # A divided feature tells the scale better than the 1 that is not read here.
    assert float((found - own).norm() / own.norm()) < (0.06 if reference is None else 0.25)
    assert bool(((found * own).sum(dim=1) > 0).all())


def test_an_empty_bin_stays_empty() -> None:
    public, limits = some_features(200, 1), torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    found = scaled_features(torch.zeros(2, 12), public, Division(0, None, limits))
    assert not found.any()
