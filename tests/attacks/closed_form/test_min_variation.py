"""The minimum total variation image, and how known outputs are weighted in it."""

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks import Progress
from fedleak.attacks.closed_form.estimates import Estimate
from fedleak.attacks.closed_form.min_variation import (
    RemainingLayers,
    _Objective,
    _Stage,
    _trained,
    color_variation,
    min_variation_image,
)
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


def test_image_agrees_with_what_is_known() -> None:
    """Fewer equations than pixels: they and the bounds hold, and no total variation is lower."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 5, stride=2, padding=2).double().requires_grad_(False)
    truth = pictures(1, SHAPE)
    leaving = layer(truth)
    upstream = torch.randn(leaving.shape, dtype=torch.float64)
    weight = layer.weight.requires_grad_()
    (gradient,) = torch.autograd.grad((layer(truth) * upstream).sum(), weight)
    off = leaving <= leaving.median()
    error = torch.where(off, torch.inf, 1e-9)
    output = Estimate(torch.where(off, leaving + 0.1, leaving).detach(), error, off, upstream)
    rest = RemainingLayers(
        [Call("layer", layer, truth, leaving.detach())], output, upstream,
        {"layer.weight": gradient, "layer.bias": upstream.sum(dim=(0, 2, 3))},
        (torch.zeros(3, 1, 1).double(), torch.ones(3, 1, 1).double()), truth.shape,
    )  # fmt: skip
    seen: list[Progress] = []
    found = min_variation_image(rest, iterations=200, soft_gates=False, report=seen.append)
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


@pytest.mark.parametrize("known", [False, True])
def test_gradient_of_the_objective_is_that_of_autograd(known: bool) -> None:
    """Of all its terms, whether the layers are known to the chain or left to autograd."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 5, 2, 2).double(), nn.Sigmoid(), nn.Conv2d(4, 3, 3).double()]
    truth, calls = torch.rand(1, 3, 12, 12, dtype=torch.float64), list[Call]()
    leaving = truth
    for at, layer in enumerate(layers):
        before, leaving = leaving, layer(leaving)
        calls.append(Call(f"l{at}", layer, before.detach(), leaving.detach()))
    upstream, off = torch.randn_like(leaving), torch.rand_like(leaving) < 0.3
    parameters = {f"l{at}.weight": layers[at].weight for at in (0, 2)}
    gradients = torch.autograd.grad((leaving * upstream).sum(), list(parameters.values()))
    partly = {"l2.weight": torch.rand_like(gradients[1]) < 0.5}
    rest = RemainingLayers(
        calls, Estimate(leaving.detach(), torch.where(off, torch.inf, 1e-9), off, upstream), None,
        dict(zip(parameters, gradients, strict=True)),
        (torch.zeros(3, 1, 1).double(), torch.ones(3, 1, 1).double()), truth.shape, partly,
    )  # fmt: skip
    objective = _Objective(rest)
    assert objective._chain is not None
    if not known:
        objective._chain = None
    stage = _Stage(0.1, _trained(calls, rest), 0.0)
    assert set(stage.matched) == set(parameters)
    point = (1.4 * torch.rand_like(truth) - 0.2).requires_grad_()
    found, slope = objective.evaluate(point.detach(), stage, [0.0] * 3)
    output = layers[2](layers[1](layers[0](point)))
    missed = output - leaving.detach()
    missed = torch.where(off, missed.relu(), missed)
    value = 10 * missed.square().sum() / leaving.detach()[~off].square().sum()
    again = torch.autograd.grad(
        (output * upstream).sum(), list(parameters.values()), create_graph=True
    )
    masks = torch.ones_like(gradients[0]), partly["l2.weight"]
    for one, wanted, mask in zip(again, gradients, masks, strict=True):
        error = ((one - wanted) * mask).square().sum() / (wanted * mask).square().sum()
        value = value + error / 2
    value = value + ((-point).relu() + (point - 1).relu()).square().mean()
    value = value + 0.1 * color_variation(point) / point.numel()
    assert found == pytest.approx(value.item())
    torch.testing.assert_close(slope, torch.autograd.grad(value, point)[0])


def layers_before_a_sigmoid(error: Tensor, noisy: Tensor, is_bound: Tensor) -> RemainingLayers:
    """A convolution and a sigmoid, with noise in some entries of the known output."""
    torch.manual_seed(0)
    layer, truth = nn.Conv2d(3, 12, 5, stride=2, padding=2).double(), pictures(1, SHAPE)
    calls = [
        Call("layer", layer, truth, layer(truth).detach()),
        Call("sigmoid", nn.Sigmoid(), layer(truth).detach(), layer(truth).sigmoid().detach()),
    ]
    leaving = calls[-1].output
    noise = torch.where(noisy, 0.02 * torch.randn_like(leaving), 0.0)
    output = Estimate(leaving + noise, error, is_bound, torch.zeros_like(leaving))
    bounds = torch.zeros(3, 1, 1).double(), torch.ones(3, 1, 1).double()
    return RemainingLayers(calls, output, None, {}, bounds, truth.shape)


def test_entries_of_larger_error_count_less() -> None:
    torch.manual_seed(1)
    noisy = torch.rand(1, 12, 8, 8) < 0.3
    alike, none = torch.full(noisy.shape, 1e-3).double(), torch.zeros_like(noisy)
    told = torch.where(noisy, 0.02, 1e-6).double()
    missed = []
    for error in (alike, told):
        rest = layers_before_a_sigmoid(error, noisy, none)
        found = min_variation_image(rest, iterations=100, soft_gates=False, report=lambda _: None)
        assert found.equations == noisy.numel()
        missed.append(float((found.image - rest.layers[0].input).square().mean()))
    assert missed[1] < missed[0] / 4
    # With upper bounds, as of a ReLU, all count alike.
    bound = none.clone()
    bound[0, 0, 0, 0] = True
    first, second = (
        min_variation_image(
            layers_before_a_sigmoid(error, noisy, bound),
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
    rest = RemainingLayers(
        [
            Call("first", first, truth, between.detach()),
            Call("relu", relu, between.detach(), between.detach()),
            Call("second", second, between.detach(), known),
        ],
        Estimate(known, nothing, off, upstream), None,
        dict(zip(parameters, gradients, strict=True)),
        (torch.zeros(3, 1, 1).double(), torch.ones(3, 1, 1).double()), truth.shape,
    )  # fmt: skip
    missed, equations = [], []
    for soft in (False, True):
        seen: list[Progress] = []
        found = min_variation_image(rest, iterations=100, soft_gates=soft, report=seen.append)
        assert seen[-1].iterations == (900 if soft else 400)
        missed.append(float((found.image - truth).square().mean()))
        equations.append(found.equations)
    exact = int((~off).sum())
    assert equations == [exact + 6 * 72 + 6, exact + 6 * 72 + 6 + 8 * 75 + 8]
    assert missed[1] < missed[0] / 2
