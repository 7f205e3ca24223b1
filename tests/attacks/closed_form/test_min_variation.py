"""The smoothest image, and how much what is known of an output counts for it."""

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks import Progress
from fedleak.attacks.closed_form.estimates import Signal
from fedleak.attacks.closed_form.min_variation import Remainder, color_variation, smoothest_image
from fedleak.attacks.module_calls import Call
from tests.cases import pictures

SHAPE = (3, 16, 16)


def test_color_variation_by_loops() -> None:
    images = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    total = 0.0
    for image in images:
        for row in range(3):
            for column in range(4):
                here = image[:, row, column]
                steps = (image[:, row, column + 1] - here).square().sum()
                steps = steps + (image[:, row + 1, column] - here).square().sum()
                total += float((steps + 1e-4).sqrt())
    assert float(color_variation(images)) == pytest.approx(total)


def test_smoothest_image_fulfils_what_is_known() -> None:
    """Fewer equations than pixels: they and the bounds hold, and it is as smooth as can be."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 5, stride=2, padding=2).double().requires_grad_(False)
    truth = pictures(1, SHAPE)
    leaving = layer(truth)
    upstream = torch.randn(leaving.shape, dtype=torch.float64)
    weight = layer.weight.requires_grad_()
    (gradient,) = torch.autograd.grad((layer(truth) * upstream).sum(), weight)
    off = leaving <= leaving.median()
    error = torch.where(off, torch.inf, 1e-9)
    output = Signal(torch.where(off, leaving + 0.1, leaving).detach(), error, off, upstream)
    rest = Remainder(
        [Call("layer", layer, truth, leaving.detach())], output, upstream,
        {"layer.weight": gradient, "layer.bias": upstream.sum(dim=(0, 2, 3))},
        (torch.zeros(3, 1, 1).double(), torch.ones(3, 1, 1).double()), truth.shape,
    )  # fmt: skip
    seen: list[Progress] = []
    found = smoothest_image(rest, iterations=200, soft_gates=False, report=seen.append)
    assert seen[-1].iterations == 600
    assert [one.iteration for one in seen] == sorted(one.iteration for one in seen)
    assert seen[-1].cost < seen[0].cost
    assert found.equations == int((~off).sum()) + weight.numel() + 4
    assert found.bounds == int(off.sum())
    assert ((found.image >= 0) & (found.image <= 1)).all()
    again = layer(found.image)
    torch.testing.assert_close(again[~off], leaving[~off].detach(), rtol=1e-2, atol=1e-2)
    assert (again[off] <= leaving[off] + 0.11).all()
    assert float(color_variation(found.image)) <= float(color_variation(truth)) * 1.01


def remainder_behind_a_sigmoid(error: Tensor, noisy: Tensor, at_most: Tensor) -> Remainder:
    """A convolution and a sigmoid whose output is known, but for noise in some entries."""
    torch.manual_seed(0)
    layer, truth = nn.Conv2d(3, 12, 5, stride=2, padding=2).double(), pictures(1, SHAPE)
    calls = [
        Call("layer", layer, truth, layer(truth).detach()),
        Call("sigmoid", nn.Sigmoid(), layer(truth).detach(), layer(truth).sigmoid().detach()),
    ]
    leaving = calls[-1].leaving
    noise = torch.where(noisy, 0.02 * torch.randn_like(leaving), 0.0)
    output = Signal(leaving + noise, error, at_most, torch.zeros_like(leaving))
    bounds = torch.zeros(3, 1, 1).double(), torch.ones(3, 1, 1).double()
    return Remainder(calls, output, None, {}, bounds, truth.shape)


def test_what_is_known_worse_counts_less() -> None:
    torch.manual_seed(1)
    noisy = torch.rand(1, 12, 8, 8) < 0.3
    alike, none = torch.full(noisy.shape, 1e-3).double(), torch.zeros_like(noisy)
    told = torch.where(noisy, 0.02, 1e-6).double()
    missed = []
    for error in (alike, told):
        rest = remainder_behind_a_sigmoid(error, noisy, none)
        found = smoothest_image(rest, iterations=100, soft_gates=False, report=lambda _: None)
        assert found.equations == noisy.numel()
        missed.append(float((found.image - rest.layers[0].entering).square().mean()))
    assert missed[1] < missed[0] / 4
    # Beside the bounds that a ReLU leaves, all count alike.
    bound = none.clone()
    bound[0, 0, 0, 0] = True
    first, second = (
        smoothest_image(
            remainder_behind_a_sigmoid(error, noisy, bound),
            iterations=20,
            soft_gates=False,
            report=lambda _: None,
        )
        for error in (alike, told)
    )
    assert torch.equal(first.image, second.image)


def test_soft_gates_match_the_gradients_of_layers_before_a_relu() -> None:
    torch.manual_seed(0)
    first, relu = nn.Conv2d(3, 8, 5, padding=2).double(), nn.ReLU()
    second = nn.Conv2d(8, 6, 3, stride=2, padding=1).double()
    truth = pictures(1, SHAPE)
    between = first(truth)
    leaving = second(relu(between))
    off = (leaving <= leaving.median()).detach()
    upstream = torch.where(off, 0.0, torch.randn_like(leaving))
    parameters = {
        f"{name}.{kind}": value
        for name, layer in (("first", first), ("second", second))
        for kind, value in layer.named_parameters()
    }
    gradients = torch.autograd.grad((leaving * upstream).sum(), list(parameters.values()))
    known = torch.where(off, leaving.median(), leaving).detach()
    nothing = torch.where(off, torch.inf, 1e-9)
    rest = Remainder(
        [
            Call("first", first, truth, between.detach()),
            Call("relu", relu, between.detach(), between.detach()),
            Call("second", second, between.detach(), known),
        ],
        Signal(known, nothing, off, upstream), None, dict(zip(parameters, gradients, strict=True)),
        (torch.zeros(3, 1, 1).double(), torch.ones(3, 1, 1).double()), truth.shape,
    )  # fmt: skip
    missed, equations = [], []
    for soft in (False, True):
        seen: list[Progress] = []
        found = smoothest_image(rest, iterations=100, soft_gates=soft, report=seen.append)
        assert seen[-1].iterations == (900 if soft else 400)
        missed.append(float((found.image - truth).square().mean()))
        equations.append(found.equations)
    exact = int((~off).sum())
    assert equations == [exact + 6 * 72 + 6, exact + 6 * 72 + 6 + 8 * 75 + 8]
    assert missed[1] < missed[0] / 2
