"""The rule of each layer type: inputs against the true ones, gradients against autograd."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks.closed_form.estimates import Estimate
from fedleak.attacks.closed_form.layer_inversion import invert_layers
from tests.attacks.closed_form.layer_cases import CONVOLUTIONS, SPARSE, case, conv, rand

INVERTIBLE: list[tuple[nn.Module, Tensor]] = [
    (nn.Flatten(), rand(1, 2, 3, 4)),
    (nn.Unflatten(1, (2, 3)), rand(1, 6)),
    (nn.Identity(), rand(1, 5)),
    (nn.Sigmoid(), rand(1, 2, 3)),
    (nn.Tanh(), rand(1, 2, 3)),
    (nn.LeakyReLU(0.2), rand(1, 9)),
    (nn.Linear(5, 7).double(), rand(1, 5)),
    (nn.Linear(7, 3, bias=False).double(), rand(1, 7)),
    (nn.LeakyReLU(0.2, inplace=True), rand(1, 9)),
    *((conv(**settings), rand(1, 4, 6, 7)) for settings in CONVOLUTIONS),
    # Several samples have one gradient, their sum.
    (nn.Linear(9, 7).double(), rand(3, 9)),
    (conv(padding=1), rand(2, 4, 6, 7)),
    (conv(padding=1, groups=2), rand(3, 4, 6, 7)),
    # Sizes at which every pixel is in a window.
    (conv(stride=2, padding=1, groups=2), rand(1, 4, 7, 7)),
    (conv(stride=3, padding=1, groups=4), rand(1, 4, 5, 5)),
    (conv(padding=2, dilation=2, groups=2), rand(1, 4, 6, 7)),
    (nn.AvgPool2d(2, stride=1, padding=1), rand(1, 3, 5, 6)),
    (nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), rand(2, 2, 6, 7)),
]


@pytest.mark.parametrize(("layer", "value"), INVERTIBLE, ids=lambda item: str(item)[:60])
def test_layer_is_inverted(layer: nn.Module, value: Tensor) -> None:
    call, output, gradient, expected = case(layer, value)
    off, steps, reason = invert_layers([call], output, gradient, iterations=3000, seed=0)
    assert bool((expected != 0).all())
    assert reason is None
    ((_, found),), (step,) = off, steps
    assert bool(found.known.all())
    torch.testing.assert_close(found.value, value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.gradient, expected, rtol=1e-6, atol=1e-8)
    assert step.known == 1
    assert step.rank == step.unknowns == value.numel()
    assert step.residual < 1e-6
    assert layer.__class__.__name__ in str(step)


@pytest.mark.parametrize("settings", SPARSE, ids=str)
def test_pixels_in_no_window_are_not_known(settings: dict[str, Any]) -> None:
    call, output, gradient, expected = case(conv(**settings), rand(1, 4, 6, 7))
    assert not bool((expected != 0).all())
    off, steps, reason = invert_layers([call], output, gradient, iterations=3000, seed=0)
    assert off == []
    (step,) = steps
    assert step.rank < step.unknowns
    assert reason is not None
    assert "of the input of layer" in reason


def test_layer_that_is_not_trained_is_inverted_from_its_outputs_alone() -> None:
    """A client sends zeros for such a weight: they are no equations."""
    call, output, gradient, _ = case(conv(padding=1), rand(1, 4, 6, 7))
    gradient["layer.weight"] = torch.zeros_like(gradient["layer.weight"])
    ((_, found),), (step,), reason = invert_layers(
        [call], output, gradient, iterations=3000, seed=0
    )
    assert reason is None
    assert step.equations == output.value.numel()
    torch.testing.assert_close(found.value, rand(1, 4, 6, 7), rtol=1e-5, atol=1e-5)


def test_relu_gives_values_and_upper_bounds() -> None:
    value = rand(1, 3, 4, 4)
    call, output, gradient, expected = case(nn.ReLU(), value)
    ((_, found),), _, reason = invert_layers([call], output, gradient, iterations=1, seed=0)
    assert reason is None
    assert torch.equal(found.known & ~found.is_bound, value > 0)
    assert torch.equal(found.is_bound, value <= 0)
    assert torch.equal(found.value[value > 0], value[value > 0])
    assert (found.value[found.is_bound] == 0).all()
    torch.testing.assert_close(found.gradient, expected)


def test_undetermined_units_are_not_known() -> None:
    """An output near 0 with a large error is neither a value nor an upper bound."""
    call, output, gradient, _ = case(nn.ReLU(), rand(1, 200))
    error = torch.full_like(output.value, 1e-9)
    error[0, :3] = 10.0
    unsure = Estimate(output.value, error, output.is_bound, output.gradient)
    ((_, found),), _, _ = invert_layers([call], unsure, gradient, iterations=1, seed=0)
    assert not (found.known | found.is_bound)[0, :3].any()
    assert (found.known | found.is_bound)[0, 3:].all()
    # With more than 2 % undetermined, the layer does not count as inverted.
    error[0, :10] = 10.0
    off, _, reason = invert_layers([call], unsure, gradient, iterations=1, seed=0)
    assert off == []
    assert reason is not None
    assert "95.0%" in reason


def test_gelu_is_inverted_on_its_increasing_branch_alone() -> None:
    value = rand(1, 50).abs() + 0.01
    call, output, gradient, expected = case(nn.GELU(), value)
    ((_, found),), _, reason = invert_layers([call], output, gradient, iterations=1, seed=0)
    assert reason is None
    torch.testing.assert_close(found.value, value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.gradient, expected, rtol=1e-5, atol=1e-8)
    # A negative output has two possible inputs, with two slopes.
    call, output, gradient, _ = case(nn.GELU(), rand(1, 50))
    off, _, reason = invert_layers([call], output, gradient, iterations=1, seed=0)
    assert off == []
    assert reason is not None
    assert "of the input of layer" in reason


@pytest.mark.parametrize("samples", [1, 3])
def test_the_step_of_a_linear_layer_has_its_residual(samples: int) -> None:
    call, output, gradient, _ = case(nn.Linear(9, 7).double(), rand(samples, 9))
    noisy = gradient | {"layer.weight": gradient["layer.weight"] + 0.01 * rand(7, 9, seed=5)}
    _, (clean_step,), _ = invert_layers([call], output, gradient, iterations=1, seed=0)
    _, (step,), _ = invert_layers([call], output, noisy, iterations=1, seed=0)
    expected, *_ = np.linalg.lstsq(output.gradient.T.numpy(), noisy["layer.weight"].numpy())
    left = noisy["layer.weight"].numpy() - output.gradient.T.numpy() @ expected
    share = np.linalg.norm(left) / np.linalg.norm(noisy["layer.weight"].numpy())
    assert step.residual == pytest.approx(float(share), rel=0.05)
    assert clean_step.residual < 1e-12
    assert step.equations == 63
    assert step.condition == pytest.approx(float(np.linalg.cond(output.gradient.numpy())))
