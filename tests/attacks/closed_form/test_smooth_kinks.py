"""Smooth forms of ReLU and max pooling against loops, and their limits."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.closed_form.smooth_kinks import SmoothKinks


def values() -> Tensor:
    return torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    "relu",
    [
        functional.relu, torch.relu, Tensor.relu, nn.ReLU(), nn.ReLU(inplace=True),
        lambda x: functional.relu(x, True), torch.relu_, Tensor.relu_,
    ],
)  # fmt: skip
def test_every_relu_is_a_softplus(relu: Callable[[Tensor], Tensor]) -> None:
    slope = 4.0 / float(values().square().mean().sqrt())
    x = values().requires_grad_()
    with SmoothKinks(4.0):
        found = relu(x * 1.0)  # a copy, since some work in place
    expected = (1 + (slope * values()).exp()).log() / slope
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(gradient, (slope * values()).sigmoid())


def test_in_place_it_changes_its_input() -> None:
    x = values()
    with SmoothKinks(4.0):
        functional.relu(x, inplace=True)
    assert not torch.equal(x, values())
    assert bool((x > 0).all())


@pytest.mark.parametrize(
    "settings",
    [{}, {"stride": 1}, {"padding": 1}, {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}],
    ids=str,
)
def test_max_pooling_by_loops(settings: dict[str, Any]) -> None:
    x, pool = values(), nn.MaxPool2d(2, **settings)
    with SmoothKinks(3.0):
        found = pool(x)
    assert found.shape == pool(x).shape
    slope = 3.0 / float(x.square().mean().sqrt())
    stride, padding, dilation = (
        value if isinstance(value, tuple) else (value, value)
        for value in (pool.stride, pool.padding, pool.dilation)
    )
    for row in range(found.shape[2]):
        for column in range(found.shape[3]):
            entries = []
            for i in range(2):
                for j in range(2):
                    at = row * stride[0] - padding[0] + i * dilation[0]
                    beside = column * stride[1] - padding[1] + j * dilation[1]
                    if 0 <= at < 6 and 0 <= beside < 5:
                        entries.append(float(x[1, 2, at, beside]))
            shares = [math.exp(slope * entry) for entry in entries]
            mean = sum(s * e for s, e in zip(shares, entries, strict=True)) / sum(shares)
            assert float(found[1, 2, row, column]) == pytest.approx(mean)


def test_with_a_high_sharpness_nothing_changes() -> None:
    x = values()
    with SmoothKinks(1e7):
        found = functional.relu(x), functional.max_pool2d(x, 3), nn.MaxPool2d(3)(x)
    torch.testing.assert_close(found[0], functional.relu(x))
    torch.testing.assert_close(found[1], functional.max_pool2d(x, 3))
    torch.testing.assert_close(found[2], functional.max_pool2d(x, 3))


def test_the_scale_of_a_call_is_that_of_the_first_pass() -> None:
    kinks, other, x = SmoothKinks(4.0), SmoothKinks(4.0), values()
    with kinks:
        functional.relu(x)
        functional.relu(10 * x)
    with kinks:
        again = functional.relu(3 * x), functional.relu(x)
    slopes = [4.0 / float((factor * x).square().mean().sqrt()) for factor in (1, 10)]
    torch.testing.assert_close(again[0], functional.softplus(3 * x, slopes[0]))
    torch.testing.assert_close(again[1], functional.softplus(x, slopes[1]))
    with other:
        anew = functional.relu(3 * x)
    assert not torch.equal(anew, again[0])


def test_poolings_that_are_left_as_they_are() -> None:
    x = values()
    with SmoothKinks(1.0):
        pooled, indices = functional.max_pool2d(x, 2, return_indices=True)
        unbatched = functional.max_pool2d(x[0], 2)
        upward = functional.max_pool2d(x, 2, ceil_mode=True)
    assert torch.equal(pooled, functional.max_pool2d(x, 2))
    assert indices.dtype == torch.int64
    assert torch.equal(unbatched, functional.max_pool2d(x[0], 2))
    assert torch.equal(upward, functional.max_pool2d(x, 2, ceil_mode=True))
