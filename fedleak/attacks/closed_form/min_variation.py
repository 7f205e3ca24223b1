"""The smoothest image that the layers left take to what is known of their output."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.base import Progress, Report
from fedleak.attacks.closed_form.estimates import Signal
from fedleak.attacks.module_calls import Call
from fedleak.attacks.module_facts import DROPOUTS
from fedleak.updates.files import Tensors

# Weights of the total variation, from one stage to the next: each starts from the image of the one
# before, and the last one leaves the equations nearly alone. A convex problem has no wrong valley
# that a smooth start would keep clear of; one without jumps in its slope is the better determined.
CONVEX = (0.1, 0.01, 0.001)
JUMPING = (3.0, 0.3, 0.03, 0.003)
CURVED = (*JUMPING, 0.0003)
# Where the gradients of layers before a ReLU are matched: from a softplus on, as they jump with its
# gates, in which L-BFGS would end at once.
SHARPNESS = (10.0, 30.0, 100.0, 300.0, 0.0)
SOFT_WEIGHT = 0.01
# Of the output's error: it says more than the errors of gradients.
OUTPUT = 10.0
# Errors below this share of the output are alike: no fit beside a total variation comes nearer.
ALIKE = 1e-4
# Steps below this, in pixels from 0 to 1, count by their square.
EDGE = 0.01
HISTORY = 30
REPORT_EVERY = 20
LINEAR = (nn.Conv2d, nn.Linear, nn.Flatten, nn.Unflatten, nn.Identity, nn.AvgPool2d, *DROPOUTS)
# Layers whose slope does not jump: behind others, the gradient of what is before them does.
SMOOTH = (*LINEAR, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU)


class Smoothest(NamedTuple):
    """What was found.

    Args:
        image: the images, ``(samples, C, H, W)``, within their bounds.
        equations: number of equations that it was to fulfil.
        bounds: number of upper bounds.
        residual: what is unexplained of the output, as a share of it; entries as they count.
        evaluations: number of passes forwards and backwards.
    """

    image: Tensor
    equations: int
    bounds: int
    residual: float
    evaluations: int


@dataclass(frozen=True)
class Remainder:
    """The layers that were not taken off, and what is known behind them.

    Args:
        layers: their calls, from the image on, modules in float64.
        output: what is known of the last one's output.
        behind: where a ReLU follows, the gradient behind it: it is that of the output where the
            output is positive, which of some may be in doubt; none where another layer follows.
        gradient: gradient by parameter name.
        bounds: lowest and highest valid values, that broadcast with the image.
        shape: shape of the images, ``(samples, C, H, W)``.
    """

    layers: Sequence[Call]
    output: Signal
    behind: Tensor | None
    gradient: Tensors
    bounds: tuple[Tensor, Tensor]
    shape: torch.Size


def smoothest_image(
    rest: Remainder, *, iterations: int, soft_gates: bool, report: Report
) -> Smoothest:
    """The image of least total variation whose output and gradients are those that are known.

    L-BFGS minimises the squared errors of the layers' output (of entries with an upper bound, what
    is above it) and of the gradients of their weights, each over its squared norm, what lies
    outside the box, and a total variation whose weight falls from stage to stage. Entries of the
    output with larger errors than most count less, where no ReLU is before or behind them. The
    output's gradient being known, the weights' gradients take one pass through these layers alone.
    Where a single layer is left that is linear, the problem is convex.

    Args:
        rest: the layers left, and what is known.
        iterations: of L-BFGS in each stage.
        soft_gates: whether stages follow in which the gradients of layers before a ReLU are
            matched, too, through a softplus in its place that is ever sharper.
        report: called now and then with the progress, in evaluations.
    """
    low, high = rest.bounds
    image = ((low + high) / 2).expand(rest.shape).clone().requires_grad_()
    output = rest.output.shaped(rest.layers[-1].leaving.shape)
    bounded = output.at_most
    exact = output.exact
    unsure = ~(exact | bounded)
    size = output.value[exact].square().sum().clamp_min(torch.finfo(image.dtype).tiny)
    # Zeros instead of a selection, whose backward pass takes longer than a convolution.
    wanted = torch.where(unsure, 0.0, output.value)
    # Of the bounds and the jumps of a ReLU, errors say too little: with weights less was found.
    even = bool(bounded.any()) or not _is_smooth(rest.layers)
    counted, bounding = exact.to(wanted) if even else output.trust(ALIKE), bounded.to(wanted)
    stages = _stages(rest, soft_gates=soft_gates)
    signal = output.gradient
    evaluations = 0

    def leaving(x: Tensor, sharp: Sequence[float]) -> Tensor:
        for call, sharpness in zip(rest.layers, sharp, strict=True):
            x = x.reshape(call.entering.shape)
            x = functional.softplus(x, sharpness) if sharpness else call.module(x)
        return x

    def unexplained(found: Tensor) -> Tensor:
        difference = found - wanted
        return (counted * difference + bounding * difference.relu()).square().sum() / size

    def objective(stage: _Stage, sharp: Sequence[float]) -> Tensor:
        found = leaving(image, sharp)
        total = OUTPUT * unexplained(found)
        if stage.matched:
            gradients = torch.autograd.grad(
                (found * signal).sum(), list(stage.matched.values()), create_graph=True
            )
            errors = [
                (value - rest.gradient[name]).square().sum() / rest.gradient[name].square().sum()
                for name, value in zip(stage.matched, gradients, strict=True)
            ]
            total = total + torch.stack(errors).mean()
        outside = (low - image).relu().square() + (image - high).relu().square()
        smoothness = color_variation(image / (high - low)) / image.numel()
        return total + outside.mean() + stage.weight * smoothness

    hard = [0.0] * len(rest.layers)
    for stage in stages:
        sharp = _sharpness(rest.layers, image.detach(), stage.sharpness)
        optimizer = torch.optim.LBFGS(
            [image], max_iter=iterations, max_eval=2 * iterations, history_size=HISTORY,
            line_search_fn="strong_wolfe", tolerance_grad=1e-14, tolerance_change=1e-16,
        )  # fmt: skip

        def closure(stage: _Stage = stage, sharp: Sequence[float] = sharp) -> float:
            nonlocal evaluations
            evaluations += 1
            value = objective(stage, sharp)
            (image.grad,) = torch.autograd.grad(value, image)
            found = float(value.detach())
            if evaluations % REPORT_EVERY == 0:
                # An iteration takes one evaluation, and now and then one more.
                total = len(stages) * iterations
                report(Progress(min(evaluations, total), total, found))
            return found

        optimizer.step(closure)
        if rest.behind is not None and bool(unsure.any()):
            with torch.no_grad():
                through = rest.behind.reshape(signal.shape) * (leaving(image, hard) > 0)
            signal = torch.where(unsure, through, output.gradient)
    equations = int(exact.sum()) + sum(value.numel() for value in stages[-1].matched.values())
    inside = torch.minimum(torch.maximum(image.detach(), low), high)
    residual = float(unexplained(leaving(inside, hard).detach()).sqrt())
    return Smoothest(inside, equations, int(bounded.sum()), residual, evaluations)


def color_variation(images: Tensor) -> Tensor:
    """Total variation of images ``(batch, C, H, W)``, all channels together; smooth at 0.

    The root of the squared steps of all channels, summed over the pixels: edges of several channels
    cost less where they fall together.
    """
    across = images.diff(dim=-1)[..., :-1, :].square().sum(dim=1)
    down = images.diff(dim=-2)[..., :-1].square().sum(dim=1)
    return (across + down + EDGE**2).sqrt().sum()


class _Stage(NamedTuple):
    """One run of L-BFGS.

    Args:
        weight: of the total variation.
        matched: the parameters whose gradients are matched.
        sharpness: of the softplus that stands for a ReLU, over the root mean square of what enters
            it; 0 for the ReLU itself.
    """

    weight: float
    matched: Tensors
    sharpness: float


def _stages(rest: Remainder, *, soft_gates: bool) -> list[_Stage]:
    layers = rest.layers
    weights: tuple[float, ...] = JUMPING
    if len(layers) == 1 and isinstance(layers[0].module, LINEAR):
        weights = CONVEX
    elif _is_smooth(layers):
        weights = CURVED
    # Gradients jump with the image in front of the last layer that does.
    behind = list(reversed(layers))
    jumps = next((at for at, call in enumerate(behind) if not _is_smooth([call])), len(behind))
    stages = [_Stage(weight, _trained(behind[:jumps], rest.gradient), 0.0) for weight in weights]
    if soft_gates and any(isinstance(call.module, nn.ReLU) for call in layers):
        every = _trained(behind, rest.gradient)
        stages += [_Stage(SOFT_WEIGHT, every, sharpness) for sharpness in SHARPNESS]
    return stages


def _is_smooth(layers: Sequence[Call]) -> bool:
    return all(isinstance(call.module, SMOOTH) for call in layers)


def _trained(layers: Sequence[Call], gradient: Tensors) -> Tensors:
    """The parameters of some layers whose gradients are known."""
    return {
        f"{call.name}.{name}": value.requires_grad_()
        for call in layers
        for name, value in call.module.named_parameters()
        # Missing where it is another layer's too, 0 where it is not trained.
        if f"{call.name}.{name}" in gradient and bool(gradient[f"{call.name}.{name}"].any())
    }


def _sharpness(layers: Sequence[Call], image: Tensor, sharpness: float) -> list[float]:
    """Of every layer, that of the softplus in its place; 0 where it stays what it is."""
    found, x = [], image
    tiny = torch.finfo(image.dtype).tiny
    with torch.no_grad():
        for call in layers:
            x = x.reshape(call.entering.shape)
            size = float(x.square().mean().sqrt().clamp_min(tiny))
            found.append(sharpness / size if isinstance(call.module, nn.ReLU) else 0.0)
            x = call.module(x)
    return found
