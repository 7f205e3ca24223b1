"""Images from features: exact where the features tell them."""

import pytest
import torch
from torch import nn

from fedleak.servers.conv_network import encoder_features, find_network
from fedleak.servers.features_to_images import Likely, fitted_inputs, linear_inputs, total_variation
from tests.servers.small_client import SHAPE, images

BOUNDS = (torch.tensor(-1.0), torch.tensor(1.0))


def invertible() -> nn.Sequential:
    """A convolution that keeps all of an image, and three linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 2, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip


def test_the_linear_estimate_is_a_ridge_regression() -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(300, 5, generator=draw, dtype=torch.float64)
    matrix = torch.randn(5, 12, generator=draw, dtype=torch.float64)
    public = (features @ matrix + 1).reshape(300, 3, 2, 2)
    own = torch.randn(4, 5, generator=draw, dtype=torch.float64)
    found = linear_inputs(own, features, public)
    # The penalty shrinks the weights by about a hundredth.
    expected = own @ matrix
    assert float((found.double().flatten(1) - 1 - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("steps", [0, 200])
def test_the_fit_is_nearer_than_its_start(steps: int) -> None:
    model, public, truth = invertible(), images(400, 0), images(6, 1)
    model[0].bias.data += 1.0  # so that few units are off
    network = find_network(model, SHAPE)
    known, features = (encoder_features(model, network, one) for one in (public, truth))
    start = images(6, 2)
    found = fitted_inputs(
        model.eval(), network, features, start, bounds=BOUNDS, spread=known.std(dim=0),
        likely=Likely.of(public), likeliness=0.0, smoothness=1e-3, steps=steps,
    )  # fmt: skip
    error = float((found - truth).norm() / (start - truth).norm())
    assert error < 0.7 if steps else error == pytest.approx(1.0)
    assert float(found.abs().max()) <= 1.0


@pytest.mark.parametrize("number", [30, 500])
def test_the_surprise_is_the_mahalanobis_distance(number: int) -> None:
    """With fewer samples than entries, as with more."""
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(60, 60, generator=draw)
    public = torch.randn(number, 60, generator=draw) @ matrix + 3
    law, own = Likely.of(public), torch.randn(5, 60, generator=draw)
    rows = public - public.mean(dim=0)
    covariance = rows.T @ rows / number + law.least * torch.eye(60)
    away = (own - public.mean(dim=0)).double()
    expected = (away @ torch.linalg.inv(covariance.double()) * away).sum(dim=1) / 60
    assert torch.allclose(law.surprise(own).double(), expected, rtol=1e-2)


def test_the_law_of_images_is_that_of_their_mirror_images_too() -> None:
    public = images(50, 3)
    assert torch.allclose(
        Likely.of(public).surprise(public), Likely.of(public).surprise(public.flip(-1)), rtol=0.3
    )
    mean = Likely.of(public).mean.reshape(SHAPE)
    assert torch.allclose(mean, mean.flip(-1), atol=1e-5)


def test_total_variation_by_hand() -> None:
    image = torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]]])
    assert total_variation(image).tolist() == [(1 + 0) / 2 + (3 + 2) / 2]
    assert total_variation(torch.ones(2, 5)).tolist() == [0.0, 0.0]
