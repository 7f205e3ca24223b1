"""Gates of a ReLU that are in doubt, against those that were really open."""

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks.closed_form.estimates import Signal
from fedleak.attacks.closed_form.layer_inversion import peel
from fedleak.attacks.closed_form.layer_rules import SMALL, ZERO
from fedleak.attacks.closed_form.relu_masks import LOOKED_AT, settled
from fedleak.attacks.module_calls import Call

SHAPE = (2, 3, 6, 7)


def rand(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Case(NamedTuple):
    """A ReLU's input, some of which is in doubt, and what was really so."""

    entering: Signal
    leaving: Signal
    bias: Tensor
    is_open: Tensor
    doubt: Tensor


def case(doubts: int, *, wrong: int, seed: int = 0) -> Case:
    """So many gates in doubt in the second channel, of which so many next to 0 are guessed wrongly.

    Outputs that are not in doubt are 1 to 2, or 0; those in doubt differ from the guess's threshold
    by steps of a millionth.
    """
    generator = torch.Generator().manual_seed(seed)
    value = rand(*SHAPE, seed=seed).sign().clamp_min(0) * (
        1 + torch.rand(SHAPE, generator=generator)
    )
    places = torch.randperm(2 * 6 * 7, generator=generator)[:doubts]
    doubt = torch.zeros(SHAPE, dtype=torch.bool)
    flat = torch.zeros(2 * 6 * 7, dtype=torch.bool)
    flat[places] = True
    doubt[:, 1] = flat.reshape(2, 6, 7)
    steps = torch.arange(doubts, dtype=torch.float64) - doubts / 2 + 0.5
    value[doubt] = 1e-3 + 1e-6 * steps[torch.randperm(doubts, generator=generator)]
    guess = value > 1e-3
    is_open = guess.clone()
    nearest = (value[:, 1] - 1e-3).abs().where(doubt[:, 1], torch.inf).flatten().argsort()[:wrong]
    for place in nearest.tolist():
        sample, row, column = place // 42, place % 42 // 7, place % 7
        is_open[sample, 1, row, column] ^= True
    upstream = rand(*SHAPE, seed=seed + 1)
    known = torch.where(doubt, torch.inf, torch.full(SHAPE, 1e-9, dtype=torch.float64))
    closed = ~guess & ~doubt
    entering = Signal(value, torch.where(closed, torch.inf, known), closed, upstream * guess)
    leaving = Signal(value, torch.full_like(value, 1e-9), torch.zeros_like(doubt), upstream)
    bias = (upstream * is_open).sum(dim=(0, 2, 3))
    return Case(entering, leaving, bias, is_open, doubt)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("doubts", "wrong"), [(1, 1), (5, 2), (8, 4), (12, 3), (30, 3), (30, 0)])
def test_the_bias_tells_which_gates_were_open(doubts: int, wrong: int, seed: int) -> None:
    entering, leaving, bias, is_open, doubt = case(doubts, wrong=wrong, seed=seed)
    assert int(((entering.gradient != 0) != is_open).sum()) == wrong
    found = settled(entering, leaving, bias)
    assert torch.equal(found.gradient, leaving.gradient * is_open)
    assert torch.equal(found.at_most, ~is_open)
    assert bool(found.known[is_open].all())
    assert bool((found.value[~is_open] == 0).all())
    assert torch.equal(found.value[is_open], entering.value[is_open])
    assert torch.equal(found.error[doubt & is_open], leaving.error[doubt & is_open])


def test_the_guess_stays_where_no_subset_explains_the_bias() -> None:
    """As under a defence's noise, or with a wrong guess that is not among those looked at."""
    clean = case(6, wrong=2)
    noisy = clean._replace(bias=clean.bias + 0.01)
    many = case(40, wrong=LOOKED_AT[-1] + 4)
    for entering, leaving, bias, _, doubt in (noisy, many):
        found = settled(entering, leaving, bias)
        for name in ("value", "error", "at_most", "gradient"):
            assert torch.equal(getattr(found, name), getattr(entering, name))
        assert bool((~found.known & ~found.at_most)[doubt].all())


def test_what_is_not_in_doubt_stays() -> None:
    entering, leaving, bias, _, _ = case(1, wrong=1)
    clear = replace(entering, error=leaving.error)
    found = settled(clear, leaving, bias)
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
def test_a_unit_that_was_barely_on_lets_its_gradient_through(
    layer: Any, shape: tuple[int, ...], place: tuple[int, ...], with_bias: bool
) -> None:
    """Its value alone would be taken for the 0 of a unit that was off."""
    layer, value = layer.double(), rand(*shape)
    with torch.no_grad():
        largest = float(layer(value).amax())
        layer.bias[place[1]] += (ZERO * SMALL) ** 0.5 * largest - layer(value)[place]
        entering = layer(value)
    assert 0 < float(entering[place]) < SMALL * float(entering.amax())
    upstream = rand(*entering.shape, seed=1)
    gradient = upstream * (entering > 0)
    nothing = torch.zeros_like(upstream)
    output = Signal(entering.relu(), nothing, nothing.bool(), upstream)
    relu = Call("relu", nn.ReLU(), entering, entering.relu())
    before = Call("layer", layer.requires_grad_(False), value, entering)
    bias = gradient.sum(dim=[d for d in range(gradient.dim()) if d != 1])
    gradients = {"layer.bias": bias} if with_bias else {}
    off, steps, _ = peel([before, relu], output, gradients, iterations=1, seed=0)
    found = off[0][1]
    assert bool(found.known[place]) == with_bias
    assert not bool(found.at_most[place])
    assert (float(found.gradient[place]) != 0) == with_bias
    assert steps[0].known == (1 if with_bias else pytest.approx(1 - 1 / entering.numel()))
    if with_bias:
        assert torch.equal(found.gradient, gradient)


def test_as_far_above_0_as_errors_go_below_it_is_in_doubt() -> None:
    """An error estimate that is too low shows in values that no output of a ReLU has."""
    value = torch.tensor([[2.0] * 100 + [1e-4, -1e-4, 0.0, 2e-4, 2e-5]], dtype=torch.float64)
    error = torch.full_like(value, 1e-5)
    output = Signal(value, error, torch.zeros_like(value, dtype=torch.bool), torch.ones_like(value))
    call = Call("relu", nn.ReLU(), value, value)
    ((_, found),), _, _ = peel([call], output, {}, iterations=1, seed=0)
    # In doubt is what is less than 1.5 times the 1e-4 above 0 by which the second lies too low;
    # 2e-5 are two standard errors.
    assert found.known[0, 100:].tolist() == [False, False, False, True, False]
    assert found.at_most[0, 100:].tolist() == [False, True, True, False, True]
