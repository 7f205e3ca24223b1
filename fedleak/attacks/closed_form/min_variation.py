"""Image of minimum total variation that agrees with what is known after the remaining layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.base import Report
from fedleak.attacks.closed_form.convolution_chain import ConvolutionChain
from fedleak.attacks.closed_form.estimates import Estimate
from fedleak.attacks.closed_form.evaluation_counter import EvaluationCounter
from fedleak.attacks.module_calls import Call
from fedleak.attacks.module_facts import DROPOUTS
from fedleak.updates.files import Tensors

# Weights of the total variation, stage by stage: each stage starts from the image of the one
# before, and with the last weight the equations decide nearly alone. A convex problem has one
# minimum, so that it needs no smooth start; without kinks the problem is determined better and the
# weight falls further.
CONVEX_WEIGHTS = (0.1, 0.01, 0.001)
NONSMOOTH_WEIGHTS = (3.0, 0.3, 0.03, 0.003)
SMOOTH_WEIGHTS = (*NONSMOOTH_WEIGHTS, 0.0003)
# Stages in which the gradients of layers before a ReLU are matched, with a softplus of growing
# sharpness in its place (0: the ReLU itself). These gradients jump where a unit switches, at which
# L-BFGS would stop.
SHARPNESS = (10.0, 30.0, 100.0, 300.0, 0.0)
SOFT_WEIGHT = 0.01
# Weight of the output's squared error relative to that of the gradients.
OUTPUT = 10.0
# Errors below this share of the output's root mean square count alike: the total variation keeps
# the fit from being better.
ERROR_FLOOR = 1e-4
# Steps between pixels below this (of a range of 1) enter the total variation quadratically.
EDGE = 0.01
HISTORY = 30
AFFINE = (nn.Conv2d, nn.Linear, nn.Flatten, nn.Unflatten, nn.Identity, nn.AvgPool2d, *DROPOUTS)
# Layers with a continuous derivative. Before any other layer, weight gradients jump with the image.
DIFFERENTIABLE = (*AFFINE, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU)


class MinVariationImage(NamedTuple):
    """Result of :func:`min_variation_image`.

    Args:
        image: the images, ``(samples, C, H, W)``, within their bounds.
        equations: number of equations: exact entries of the output and entries of gradients.
        bounds: number of upper bounds.
        residual: relative residual of the output, with the weights of the fit.
        evaluations: number of forward and backward passes.
    """

    image: Tensor
    equations: int
    bounds: int
    residual: float
    evaluations: int


@dataclass(frozen=True)
class RemainingLayers:
    """The layers that were not inverted, and what is known of their output and gradients.

    Args:
        layers: their calls, from the image on, modules in float64.
        output: estimate of the last one's output.
        relu_gradient: if a ReLU follows, the gradient with respect to the ReLU's output. It is the
            gradient of the layers' output where that is positive, which may be undetermined for
            some entries. None if no ReLU follows.
        gradient: gradient by parameter name.
        bounds: lowest and highest valid values, which broadcast with the image.
        shape: shape of the images, ``(samples, C, H, W)``.
        known: True where a parameter's gradient is exact, by name; parameters that are missing are
            exact everywhere. Other entries are not matched.
    """

    layers: Sequence[Call]
    output: Estimate
    relu_gradient: Tensor | None
    gradient: Tensors
    bounds: tuple[Tensor, Tensor]
    shape: torch.Size
    known: Mapping[str, Tensor] = field(default_factory=dict)

    def matchable(self, name: str) -> bool:
        """Whether a parameter's gradient is known in an entry that is not 0."""
        # Missing if it is another layer's as well, 0 if it is not trained.
        if name not in self.gradient:
            return False
        return bool((self.gradient[name] * self.known.get(name, 1)).any())

    def matched_error(self, name: str, value: Tensor) -> Tensor:
        """Squared error of a parameter's gradient in its exact entries, relative to their norm."""
        wanted = self.gradient[name]
        if name in self.known:
            wanted, value = wanted[self.known[name]], value[self.known[name]]
        return (value - wanted).square().sum() / wanted.square().sum()

    def matched_slope(self, name: str, value: Tensor) -> tuple[float, Tensor]:
        """The same, and its gradient with respect to the parameter's gradient."""
        wanted, known = self.gradient[name], self.known.get(name)
        missed = value - wanted
        if known is not None:
            wanted, missed = wanted * known, missed * known
        size = float(wanted.square().sum())
        return float(missed.square().sum()) / size, missed * (2 / size)

    def entries(self, name: str) -> int:
        """Number of the exact entries of a parameter's gradient."""
        known = self.known.get(name)
        return self.gradient[name].numel() if known is None else int(known.sum())


def min_variation_image(
    rest: RemainingLayers, *, iterations: int, soft_gates: bool, report: Report
) -> MinVariationImage:
    """The image of least total variation that yields the known output and gradients.

    L-BFGS minimises the sum of: the squared error of the layers' output (for entries with an upper
    bound, of the excess over it); the squared errors of the weights' gradients, each relative to
    its squared norm; the squared excess over the valid range; and a total variation whose weight
    falls from stage to stage. Entries of the output with a larger standard error count less, unless
    there are upper bounds or kinks. As the gradient with respect to the output is known, the
    gradients of the weights need a pass through these layers alone. With a single affine layer left
    the problem is convex.

    Args:
        rest: the layers left, and what is known.
        iterations: maximum number of iterations of L-BFGS in each stage.
        soft_gates: whether to add stages in which the gradients of layers before a ReLU are matched
            as well, through a softplus of growing sharpness in its place.
        report: called now and then with the progress, in evaluations.
    """
    stages = _stages(rest, soft_gates=soft_gates)
    objective = _Objective(rest)
    counter = EvaluationCounter(report, len(stages) * iterations)
    for stage in stages:
        _minimise(objective, stage, iterations, counter)
        objective.update_output_gradient()
    matched = sum(map(rest.entries, stages[-1].matched))
    image = objective.image_within_bounds()
    return MinVariationImage(
        image, int(objective.exact.sum()) + matched, int(objective.bounded.sum()),
        objective.residual(image), counter.evaluations,
    )  # fmt: skip


def color_variation(images: Tensor) -> Tensor:
    """Total variation of images ``(batch, C, H, W)``, all channels together; smooth at 0.

    The root of the squared steps of all channels to the right and down, summed over the pixels:
    edges of several channels cost less where they coincide.
    """
    across = images.diff(dim=-1)[..., :-1, :].square().sum(dim=1)
    down = images.diff(dim=-2)[..., :-1].square().sum(dim=1)
    return (across + down + EDGE**2).sqrt().sum()


def _variation_and_slope(images: Tensor) -> tuple[float, Tensor]:
    """The value of :func:`color_variation`, and its gradient."""
    corner = images[..., :-1, :-1]
    across, down = images[..., :-1, 1:] - corner, images[..., 1:, :-1] - corner
    squares = (across.square() + down.square()).sum(dim=1, keepdim=True)
    length = squares.add_(EDGE**2).sqrt_()
    across.div_(length)
    down.div_(length)
    slope = torch.zeros_like(images)
    slope[..., :-1, 1:] += across
    slope[..., 1:, :-1] += down
    slope[..., :-1, :-1] -= across.add_(down)
    return float(length.sum()), slope


class _Stage(NamedTuple):
    """One run of L-BFGS.

    Args:
        weight: weight of the total variation.
        matched: the parameters whose gradients are matched.
        sharpness: sharpness of the softplus in place of a ReLU, relative to the root mean square of
            its input; 0 for the ReLU itself.
    """

    weight: float
    matched: Tensors
    sharpness: float


class _Objective:
    """The function of the image that a stage minimises.

    Attributes:
        image: the image with which the last stage ended.
        exact: entries of the output whose value is known.
        bounded: entries of the output with an upper bound.
    """

    def __init__(self, rest: RemainingLayers) -> None:
        low, high = rest.bounds
        self._rest = rest
        self.image = ((low + high) / 2).expand(rest.shape).clone()
        output = rest.output.reshape(rest.layers[-1].output.shape)
        self.bounded, self.exact = output.is_bound, output.exact
        self._undetermined = ~(self.exact | self.bounded)
        size = output.value[self.exact].square().sum()
        self._size = float(size.clamp_min(torch.finfo(self.image.dtype).tiny))
        # Zeros instead of a selection, whose backward pass takes longer than a convolution.
        self._target = torch.where(self._undetermined, 0.0, output.value)
        # With upper bounds or kinks, weights by error gave worse images in our experiments.
        alike = bool(self.bounded.any()) or not _is_differentiable(rest.layers)
        exact = self.exact.to(self._target)
        self._weights = exact if alike else output.weights(ERROR_FLOOR)
        self._bound_weights = self.bounded.to(self._target)
        self._known_gradient = self._output_gradient = output.gradient
        self._no_softplus = [0.0] * len(rest.layers)
        known = ConvolutionChain.applies(rest.layers)
        self._chain = ConvolutionChain(rest.layers) if known else None

    def evaluate(
        self, image: Tensor, stage: _Stage, sharpness: Sequence[float]
    ) -> tuple[float, Tensor]:
        """The objective of a stage at an image, and its gradient.

        Args:
            image: the image.
            stage: the stage.
            sharpness: for every layer, see :meth:`_output`.
        """
        if self._chain is None or any(sharpness):
            value, gradient = self._fit_by_autograd(image, stage, sharpness)
        else:
            value, gradient = self._fit(self._chain, image, stage)
        low, high = self._rest.bounds
        excess = (image - high).relu_().sub_((low - image).relu_())
        scale = 1 / (high - low)
        smoothness, slope = _variation_and_slope(image * scale)
        factor = stage.weight / image.numel()
        value += float(excess.square().mean()) + factor * smoothness
        gradient = gradient + excess.mul_(2 / image.numel())
        return value, gradient.add_(slope * scale, alpha=factor)

    def _fit(self, chain: ConvolutionChain, image: Tensor, stage: _Stage) -> tuple[float, Tensor]:
        """Errors of output and gradients without the other terms, and their gradient."""
        output, found = chain.forward(image, self._output_gradient, stage.matched)
        missed = output - self._target
        weighted = self._weighted(missed)
        value = OUTPUT * float(weighted.square().sum()) / self._size
        slope = self._weights + self._bound_weights * (missed > 0)
        back: Tensors = {}
        for name, gradient in found.items():
            error, own = self._rest.matched_slope(name, gradient)
            value += error / len(found)
            back[name] = own / len(found)
        missed_slope = weighted.mul_(slope).mul_(2 * OUTPUT / self._size)
        return value, chain.backward(missed_slope, back).reshape(image.shape)

    def _fit_by_autograd(
        self, image: Tensor, stage: _Stage, sharpness: Sequence[float]
    ) -> tuple[float, Tensor]:
        """The same for any layers."""
        rest = self._rest
        with torch.enable_grad():
            image = image.detach().requires_grad_()
            output = self._output(image, sharpness)
            total = OUTPUT * self._output_error(output)
            if stage.matched:
                gradients = torch.autograd.grad(
                    (output * self._output_gradient).sum(), list(stage.matched.values()),
                    create_graph=True,
                )  # fmt: skip
                errors = [
                    rest.matched_error(name, value)
                    for name, value in zip(stage.matched, gradients, strict=True)
                ]
                total = total + torch.stack(errors).mean()
            (found,) = torch.autograd.grad(total, image)
        return float(total.detach()), found

    def sharpness(self, stage: _Stage) -> list[float]:
        """For every layer, the sharpness of the softplus in its place; 0 for the layer itself."""
        found, x = [], self.image
        tiny = torch.finfo(x.dtype).tiny
        with torch.no_grad():
            for call in self._rest.layers:
                x = x.reshape(call.input.shape)
                rms = float(x.square().mean().sqrt().clamp_min(tiny))
                found.append(stage.sharpness / rms if isinstance(call.module, nn.ReLU) else 0.0)
                x = call.module(x)
        return found

    def update_output_gradient(self) -> None:
        """Set the gradient at undetermined outputs by the mask of the current image."""
        behind = self._rest.relu_gradient
        if behind is None or not bool(self._undetermined.any()):
            return
        with torch.no_grad():
            active = self._output(self.image, self._no_softplus) > 0
            passed = behind.reshape(active.shape) * active
        self._output_gradient = torch.where(self._undetermined, passed, self._known_gradient)

    def image_within_bounds(self) -> Tensor:
        """The current image, clipped to the valid range."""
        low, high = self._rest.bounds
        return torch.minimum(torch.maximum(self.image, low), high)

    def residual(self, image: Tensor) -> float:
        """Relative residual of the output for an image."""
        output = self._output(image, self._no_softplus).detach()
        return float(self._output_error(output).sqrt())

    def _output(self, x: Tensor, sharpness: Sequence[float]) -> Tensor:
        """Output of the layers, with a softplus in place of those of a sharpness above 0."""
        for call, sharp in zip(self._rest.layers, sharpness, strict=True):
            x = x.reshape(call.input.shape)
            x = functional.softplus(x, sharp) if sharp else call.module(x)
        return x

    def _output_error(self, output: Tensor) -> Tensor:
        return self._weighted(output - self._target).square().sum() / self._size

    def _weighted(self, missed: Tensor) -> Tensor:
        return self._weights * missed + self._bound_weights * missed.relu()


def _minimise(
    objective: _Objective, stage: _Stage, iterations: int, counter: EvaluationCounter
) -> None:
    """One run of L-BFGS from the current image."""
    sharpness = objective.sharpness(stage)
    image = objective.image.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [image], max_iter=iterations, max_eval=2 * iterations, history_size=HISTORY,
        line_search_fn="strong_wolfe", tolerance_grad=1e-14, tolerance_change=1e-16,
    )  # fmt: skip

    def closure() -> float:
        with torch.no_grad():
            value, image.grad = objective.evaluate(image.detach(), stage, sharpness)
        counter.count(value)
        return value

    optimizer.step(closure)
    objective.image = image.detach()


def _stages(rest: RemainingLayers, *, soft_gates: bool) -> list[_Stage]:
    layers = rest.layers
    weights: tuple[float, ...] = NONSMOOTH_WEIGHTS
    if len(layers) == 1 and isinstance(layers[0].module, AFFINE):
        weights = CONVEX_WEIGHTS
    elif _is_differentiable(layers):
        weights = SMOOTH_WEIGHTS
    # Weight gradients are continuous in the image only for layers after the last kink.
    from_last = list(reversed(layers))
    kink = next((at for at, call in enumerate(from_last) if not _is_differentiable([call])), None)
    matched = _trained(from_last[:kink], rest)
    stages = [_Stage(weight, matched, 0.0) for weight in weights]
    if soft_gates and any(isinstance(call.module, nn.ReLU) for call in layers):
        every = _trained(from_last, rest)
        stages += [_Stage(SOFT_WEIGHT, every, sharpness) for sharpness in SHARPNESS]
    return stages


def _is_differentiable(layers: Sequence[Call]) -> bool:
    return all(isinstance(call.module, DIFFERENTIABLE) for call in layers)


def _trained(layers: Sequence[Call], rest: RemainingLayers) -> Tensors:
    """The parameters of some layers whose gradients are known."""
    return {
        f"{call.name}.{name}": value.requires_grad_()
        for call in layers
        for name, value in call.module.named_parameters()
        if rest.matchable(f"{call.name}.{name}")
    }
