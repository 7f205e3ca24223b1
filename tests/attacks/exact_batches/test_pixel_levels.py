"""Rounding to 256 levels, and the factor that the levels give."""

import pytest
import torch

from fedleak.attacks.exact_batches.pixel_levels import PixelLevels, judge, pixel_levels
from fedleak.updates.knowledge import Knowledge
from tests.attacks.exact_batches.batches import SHAPE, perceptron, smooth_images


def levels(*, mean: float = 0.0, std: float = 1.0, unit: float = 2**-53) -> PixelLevels:
    facts = Knowledge(perceptron((64, 4, 2)), SHAPE, mean=(mean,), std=(std,))
    found = pixel_levels(facts, unit)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_pixels_are_those_of_the_client_to_the_last_digit(kind: torch.dtype) -> None:
    own = levels(mean=0.45, std=0.25, unit=torch.finfo(kind).eps / 2)
    images = smooth_images(3, 0).flatten(1)
    mean, std = (torch.tensor(value, dtype=torch.float64).to(kind) for value in (0.45, 0.25))
    inputs = ((images.to(kind) / 255 - mean) / std).double()
    off = 0.2 / 255 / 0.25 * torch.linspace(-1, 1, 64)
    exact, near = own.round(inputs + off)
    assert bool(near.all())
    if kind == torch.float32:
        assert torch.equal(exact, inputs)
    else:
        torch.testing.assert_close(exact, inputs, rtol=1e-15, atol=1e-15)


def test_a_float64_client_may_hold_pixels_of_float32() -> None:
    inputs = (smooth_images(1, 0).flatten(1) / 255).double()
    assert torch.equal(levels().round(inputs)[0], inputs)


def test_one_pixel_between_levels_is_enough_to_be_none() -> None:
    inputs = smooth_images(2, 0).flatten(1).double() / 255
    inputs[1, 17] += 0.4 / 255
    assert levels().round(inputs)[1].tolist() == [True, False]


@pytest.mark.parametrize("factor", [-3.7e-5, 0.21])
def test_the_factor_of_a_multiple_is_found(factor: float) -> None:
    image = smooth_images(1, 3).flatten().double() / 255
    found = levels().scaled(factor * image)
    torch.testing.assert_close(found[0], image)
    assert len(levels().scaled(torch.rand(64, dtype=torch.float64))) == 0


@pytest.mark.parametrize(
    "facts",
    [
        {"input_shape": (64,)},
        {"input_shape": (1, 7, 9)},
        {"input_shape": SHAPE, "value_range": (-1.0, 1.0)},
    ],
)
def test_samples_that_are_no_such_images(facts) -> None:
    assert pixel_levels(Knowledge(perceptron((64, 4, 2)), **facts), 2**-24) is None


def test_a_rounded_sample_is_judged_by_its_distance() -> None:
    distances, bounds, without = (
        torch.tensor(values, dtype=torch.float64)
        for values in ([0.1, 0.3, 0.3, 0.1], [0.2, 0.2, 0.2, torch.inf], [0.2, 0.2, 0.2, torch.inf])
    )
    agrees = torch.tensor([True, True, False, False])
    found = judge(distances, bounds, without, agrees, span=8.0)
    assert found.rounded.tolist() == [True, False, True, True]
    assert found.bounds.tolist() == pytest.approx([0.0, 0.2, 0.5, 0.0])
    assert found.unconditional.tolist() == pytest.approx([0.3, 0.2, 0.5, 8.0])
