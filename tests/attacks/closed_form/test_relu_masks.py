"""Undetermined units of a ReLU, against those that were active."""

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks.closed_form.estimates import Estimate
from fedleak.attacks.closed_form.layer_inversion import invert_layers
from fedleak.attacks.closed_form.layer_rules import SMALL, ZERO
from fedleak.attacks.closed_form.relu_masks import ENUMERATED, resolve_masks
from fedleak.attacks.module_calls import Call

SHAPE = (2, 3, 6, 7)


def rand(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Case(NamedTuple):
    """A ReLU's input with undetermined units, and the true mask."""

    inputs: Estimate
    outputs: Estimate
    bias: Tensor
    active: Tensor
    undetermined: Tensor


def case(count: int, *, wrong: int, seed: int = 0) -> Case:
    """Undetermined units in the second channel, of which those closest to 0 are guessed wrongly.

    Other outputs are 1 to 2, or 0; undetermined ones differ from the threshold of the guess by
    steps of a millionth.
    """
    generator = torch.Generator().manual_seed(seed)
    value = rand(*SHAPE, seed=seed).sign().clamp_min(0) * (
        1 + torch.rand(SHAPE, generator=generator)
    )
    places = torch.randperm(2 * 6 * 7, generator=generator)[:count]
    undetermined = torch.zeros(SHAPE, dtype=torch.bool)
    flat = torch.zeros(2 * 6 * 7, dtype=torch.bool)
    flat[places] = True
    undetermined[:, 1] = flat.reshape(2, 6, 7)
    steps = torch.arange(count, dtype=torch.float64) - count / 2 + 0.5
    value[undetermined] = 1e-3 + 1e-6 * steps[torch.randperm(count, generator=generator)]
    guess = value > 1e-3
    active = guess.clone()
    nearest = (
        (value[:, 1] - 1e-3).abs().where(undetermined[:, 1], torch.inf).flatten().argsort()[:wrong]
    )
    for place in nearest.tolist():
        sample, row, column = place // 42, place % 42 // 7, place % 7
        active[sample, 1, row, column] ^= True
    upstream = rand(*SHAPE, seed=seed + 1)
    known = torch.where(undetermined, torch.inf, torch.full(SHAPE, 1e-9, dtype=torch.float64))
    closed = ~guess & ~undetermined
    inputs = Estimate(value, torch.where(closed, torch.inf, known), closed, upstream * guess)
    outputs = Estimate(
        value, torch.full_like(value, 1e-9), torch.zeros_like(undetermined), upstream
    )
    bias = (upstream * active).sum(dim=(0, 2, 3))
    return Case(inputs, outputs, bias, active, undetermined)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("count", "wrong"), [(1, 1), (5, 2), (8, 4), (12, 3), (30, 3), (30, 0)])
def test_the_bias_gradient_determines_the_mask(count: int, wrong: int, seed: int) -> None:
    inputs, outputs, bias, active, undetermined = case(count, wrong=wrong, seed=seed)
    assert int(((inputs.gradient != 0) != active).sum()) == wrong
    found = resolve_masks(inputs, outputs, bias)
    assert torch.equal(found.gradient, outputs.gradient * active)
    assert torch.equal(found.is_bound, ~active)
    assert bool(found.known[active].all())
    assert bool((found.value[~active] == 0).all())
    assert torch.equal(found.value[active], inputs.value[active])
    assert torch.equal(found.error[undetermined & active], outputs.error[undetermined & active])


def test_the_guess_is_kept_where_no_mask_fits() -> None:
    """As with a defence's noise, or a wrong guess for a unit that is not enumerated."""
    clean = case(6, wrong=2)
    noisy = clean._replace(bias=clean.bias + 0.01)
    many = case(40, wrong=ENUMERATED[-1] + 4)
    for inputs, outputs, bias, _, undetermined in (noisy, many):
        found = resolve_masks(inputs, outputs, bias)
        for name in ("value", "error", "is_bound", "gradient"):
            assert torch.equal(getattr(found, name), getattr(inputs, name))
        assert bool((~found.known & ~found.is_bound)[undetermined].all())


def test_determined_units_stay() -> None:
    inputs, outputs, bias, _, _ = case(1, wrong=1)
    clear = replace(inputs, error=outputs.error)
    found = resolve_masks(clear, outputs, bias)
    assert torch.equal(found.gradient, clear.gradient)
    assert torch.equal(found.error, clear.error)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    ("layer", "shape", "place"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (1, 3, 5, 6), (0, 2, 2, 2)),
        (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 5, 6), (1, 2, 2, 2)),
        (nn.Linear(5, 20), (3, 5), (1, 2)),
    ],
    ids=["conv", "conv-batch", "linear-batch"],
)
def test_a_barely_active_unit_passes_its_gradient(
    layer: Any, shape: tuple[int, ...], place: tuple[int, ...], with_bias: bool
) -> None:
    """By its value alone it would be taken for an inactive unit."""
    layer, value = layer.double(), rand(*shape)
    with torch.no_grad():
        largest = float(layer(value).amax())
        layer.bias[place[1]] += (ZERO * SMALL) ** 0.5 * largest - layer(value)[place]
        inputs = layer(value)
    assert 0 < float(inputs[place]) < SMALL * float(inputs.amax())
    upstream = rand(*inputs.shape, seed=1)
    gradient = upstream * (inputs > 0)
    nothing = torch.zeros_like(upstream)
    output = Estimate(inputs.relu(), nothing, nothing.bool(), upstream)
    relu = Call("relu", nn.ReLU(), inputs, inputs.relu())
    before = Call("layer", layer.requires_grad_(False), value, inputs)
    bias = gradient.sum(dim=[d for d in range(gradient.dim()) if d != 1])
    gradients = {"layer.bias": bias} if with_bias else {}
    off, steps, _ = invert_layers([before, relu], output, gradients, iterations=1, seed=0)
    found = off[0][1]
    assert bool(found.known[place]) == with_bias
    assert not bool(found.is_bound[place])
    assert (float(found.gradient[place]) != 0) == with_bias
    assert steps[0].known == (1 if with_bias else pytest.approx(1 - 1 / inputs.numel()))
    if with_bias:
        assert torch.equal(found.gradient, gradient)


def test_units_as_far_above_0_as_errors_go_below_it_are_undetermined() -> None:
    """Negative estimates, which no output of a ReLU has, show that the errors are too low."""
    value = torch.tensor([[2.0] * 100 + [1e-4, -1e-4, 0.0, 2e-4, 2e-5]], dtype=torch.float64)
    error = torch.full_like(value, 1e-5)
    output = Estimate(
        value, error, torch.zeros_like(value, dtype=torch.bool), torch.ones_like(value)
    )
    call = Call("relu", nn.ReLU(), value, value)
    ((_, found),), _, _ = invert_layers([call], output, {}, iterations=1, seed=0)
    # Undetermined is what is less than 1.5 times the 1e-4 above 0 by which the second is too low;
    # 2e-5 is two standard errors.
    assert found.known[0, 100:].tolist() == [False, False, False, True, False]
    assert found.is_bound[0, 100:].tolist() == [False, True, True, False, True]
