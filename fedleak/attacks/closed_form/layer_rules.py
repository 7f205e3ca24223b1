"""How each type of layer is inverted: one function a type, registered by :func:`peels`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.closed_form.convolution import ConvolutionMaps
from fedleak.attacks.closed_form.estimates import Signal
from fedleak.attacks.closed_form.least_squares import Equations, Solution, solve
from fedleak.attacks.closed_form.linear import linear_input
from fedleak.attacks.module_calls import Call
from fedleak.attacks.module_facts import DROPOUTS, draws

# Values up to this share of the largest count as the 0 that a ReLU gives; up to the second one, and
# between so many standard errors and so many, they are in doubt.
ZERO, SMALL = 1e-8, 1e-6
DEVIATIONS, CLEAR_DEVIATIONS = 3.0, 6.0
# So are values that lie less than so many times as far above 0, in standard errors, as the lowest
# lies below, where no output of a ReLU is: the errors are estimates.
MARGIN = 1.5
# Gradients are rounded to seven digits.
ROUNDING = 1e-7
# The largest plane, in pixels, on which the solver is preconditioned: its Gram matrix is made.
LARGEST_PLANE = 1024


class Step(NamedTuple):
    """How one layer came off, or was solved for in vain.

    Args:
        layer: name of the layer.
        kind: its type.
        unknowns: number of entries of its input.
        equations: number of equations for them; of a layer that has none, as many.
        rank: how many independent ones those are, by estimate.
        residual: what they leave unexplained, as a share of their right sides.
        condition: their condition, as far as it was seen; 1 where nothing was solved.
        known: share of the input's entries that is known.
    """

    layer: str
    kind: str
    unknowns: int
    equations: int
    rank: int
    residual: float
    condition: float
    known: float

    def __str__(self) -> str:
        return (
            f"{self.layer} ({self.kind}): rank {self.rank} of {self.unknowns} from "
            f"{self.equations} equations, residual {self.residual:.1e}, condition "
            f"{self.condition:.1f}, known {self.known:.1%}"
        )


class Layer(NamedTuple):
    """A layer that is to be taken off.

    Args:
        call: its call, whose tensors count by their shapes alone.
        weight: gradient of its weight; none if it has none or is not trained.
        iterations: the most that a solver may take.
        seed: of what a solver draws.
    """

    call: Call
    weight: Tensor | None
    iterations: int
    seed: int


# The module is of the types that the function is registered for.
Peel = Callable[[Any, Layer, Signal], tuple[Signal, Step]]
PEELS: dict[type[nn.Module], Peel] = {}
"""Type of layer -> how it is taken off."""


def peels(*kinds: type[nn.Module]) -> Callable[[Peel], Peel]:
    """Registers a function for layers of these very types.

    It is given the layer in float64, its :class:`Layer` and what is known of its output, and gives
    what is known of its input. It raises ValueError where it cannot.
    """

    def register(function: Peel) -> Peel:
        PEELS.update(dict.fromkeys(kinds, function))
        return function

    return register


def unsolved_step(layer: Layer, signal: Signal) -> Step:
    """The step of a layer that needs no solving."""
    call, known = layer.call, signal.known | signal.at_most
    return Step(
        call.name, type(call.module).__name__, call.entering.numel(), call.leaving.numel(),
        int(known.sum()), 0.0, 1.0, float(known.double().mean()),
    )  # fmt: skip


@peels(*DROPOUTS)
def _dropout(module: nn.Module, layer: Layer, output: Signal) -> tuple[Signal, Step]:
    if draws(module):
        raise ValueError("it draws")
    return _reshape(module, layer, output)


@peels(nn.Flatten, nn.Identity, nn.Unflatten)
def _reshape(module: nn.Module, layer: Layer, output: Signal) -> tuple[Signal, Step]:
    found = output.shaped(layer.call.entering.shape)
    return found, unsolved_step(layer, found)


def _invert(
    layer: Layer, output: Signal, inverse: Callable[[Tensor], Tensor], forward: nn.Module
) -> tuple[Signal, Step]:
    """Of an activation that rises everywhere."""
    value = inverse(output.value)
    point = value.detach().requires_grad_()
    # A copy, as the activation may work in place.
    (slope,) = torch.autograd.grad(forward(point.clone()).sum(), point)
    tiny = torch.finfo(value.dtype).tiny
    found = Signal(
        value.detach(), output.error / slope.clamp_min(tiny), output.at_most,
        output.gradient * slope,
    )  # fmt: skip
    return found, unsolved_step(layer, found)


@peels(nn.Sigmoid)
def _sigmoid(module: nn.Module, layer: Layer, output: Signal) -> tuple[Signal, Step]:
    # What lies outside by rounding is put just inside.
    edge = torch.finfo(torch.float32).eps
    return _invert(layer, output, lambda y: y.clamp(edge, 1 - edge).logit(), module)


@peels(nn.Tanh)
def _tanh(module: nn.Module, layer: Layer, output: Signal) -> tuple[Signal, Step]:
    edge = torch.finfo(torch.float32).eps
    return _invert(layer, output, lambda y: y.clamp(edge - 1, 1 - edge).atanh(), module)


@peels(nn.LeakyReLU)
def _leaky_relu(module: nn.LeakyReLU, layer: Layer, output: Signal) -> tuple[Signal, Step]:
    slope = module.negative_slope
    if slope <= 0:
        raise ValueError(f"a slope of {slope:g} cannot be inverted")
    return _invert(layer, output, lambda y: torch.where(y > 0, y, y / slope), module)


@peels(nn.ReLU)
def _relu(module: nn.ReLU, layer: Layer, output: Signal) -> tuple[Signal, Step]:
    """Positive outputs are the inputs; of the others the input is at most 0; few are in doubt."""
    value, largest, accurate = output.value, output.value.abs().amax(), output.known
    error = _spread(output.error, accurate).clamp_min(torch.finfo(value.dtype).tiny)
    zero = torch.maximum(ZERO * largest, DEVIATIONS * error)
    likely = torch.maximum(SMALL * largest, CLEAR_DEVIATIONS * error)
    lowest = torch.where(accurate & (value < -ZERO * largest), value / error, 0.0).amin()
    clear = torch.maximum(likely, -MARGIN * lowest * error)
    off = accurate & (value <= zero)
    nothing = torch.full_like(error, torch.inf)
    found = Signal(
        torch.where(off, 0.0, value), torch.where(value > clear, output.error, nothing), off,
        output.gradient * (value > torch.where(accurate, likely, 0.0)),
    )  # fmt: skip
    return found, unsolved_step(layer, found)


def _spread(error: Tensor, accurate: Tensor) -> Tensor:
    """Errors that are estimates from few samples, as root mean squares of those near by.

    What a convolution tells little of lies together: some places, in all channels.
    """
    squares, count = torch.where(accurate, error, 0.0).square(), accurate.to(error)
    if error.dim() == 4:
        squares, count = (
            functional.avg_pool2d(part.mean(dim=1, keepdim=True), 3, stride=1, padding=1)
            for part in (squares, count)
        )
    else:
        squares, count = squares.mean(), count.mean()
    near = (squares / count.clamp_min(torch.finfo(error.dtype).tiny)).sqrt().expand_as(error)
    return torch.where(accurate, torch.maximum(error, near), error)


@peels(nn.GELU)
def _gelu(module: nn.GELU, layer: Layer, output: Signal) -> tuple[Signal, Step]:
    """Outputs above 0 rise with the inputs; each below is that of two inputs, so not known."""
    value = output.value
    positive = value > CLEAR_DEVIATIONS * output.error.clamp_max(output.scale)
    point = value.clamp_min(0) + 0.2  # above the solution, where the function is convex enough
    for _ in range(60):  # Newton; the slope there is between 0.5 and 1.2
        at = point.detach().requires_grad_()
        (slope,) = torch.autograd.grad(module(at).sum(), at)
        point = (point - (module(point) - value) / slope.clamp_min(0.5)).clamp_min(0)
    at = point.detach().requires_grad_()
    (slope,) = torch.autograd.grad(module(at).sum(), at)
    nothing = torch.full_like(value, torch.inf)
    found = Signal(
        torch.where(positive, point, 0.0).detach(),
        torch.where(positive, output.error / slope, nothing),
        torch.zeros_like(output.at_most),
        output.gradient * slope * positive,
    )
    return found, unsolved_step(layer, found)


@peels(nn.Linear)
def _linear(module: nn.Linear, layer: Layer, output: Signal) -> tuple[Signal, Step]:
    """The input is in the gradient of the weight, with or without a bias."""
    if layer.weight is None:
        raise ValueError("its weight's gradient is 0")
    if output.value.dim() != 2:
        raise ValueError("it takes no single vector")
    if len(output.value) > 1:
        value, error = _inputs_of_batch(layer.weight, output.gradient)
    else:
        known = linear_input(layer.weight, output.gradient[0])
        value = known.value[None]
        error = torch.full_like(value, known.error) * value.square().mean().sqrt()
    found = Signal(
        value, error, torch.zeros_like(value, dtype=torch.bool), output.gradient @ module.weight
    )
    missed = (layer.weight - output.gradient.mT @ value).norm() / layer.weight.norm()
    singular = torch.linalg.svdvals(output.gradient)
    independent = int((singular > ROUNDING * singular[0]).sum())
    return found, Step(
        layer.call.name, type(module).__name__, value.numel(), layer.weight.numel(),
        independent * value.shape[1], float(missed), float(singular[0] / singular[-1]),
        float(found.known.double().mean()),
    )  # fmt: skip


def _inputs_of_batch(weight: Tensor, leaving: Tensor) -> tuple[Tensor, Tensor]:
    """The least squares solution of ``weight = leaving^T inputs``, and its standard errors."""
    samples, rows = leaving.shape
    if rows <= samples:
        raise ValueError(f"{rows} outputs for {samples} samples")
    inverse = torch.linalg.pinv(leaving.mT, rtol=ROUNDING)
    value = inverse @ weight
    missed = (weight - leaving.mT @ value).square().sum(dim=0) / (rows - samples)
    # Rounding is the least that is unexplained.
    missed = missed.clamp_min(float((ROUNDING * weight).square().mean()))
    error = torch.outer(inverse.square().sum(dim=1), missed).sqrt()
    if int(torch.linalg.matrix_rank(leaving, rtol=ROUNDING)) < samples:
        error = torch.full_like(error, torch.inf)
    return value, error


@peels(nn.Conv2d)
def _convolution(module: nn.Conv2d, layer: Layer, output: Signal) -> tuple[Signal, Step]:
    if output.value.dim() != 4:
        raise ValueError("it takes no batch")
    equations = convolution_equations(module, layer, output)
    unknowns = layer.call.entering.numel()
    if equations.count < unknowns:
        raise ValueError(f"{equations.count} equations for {unknowns} unknowns")
    solution = solve(equations, iterations=layer.iterations, seed=layer.seed)
    found = Signal(
        solution.value, solution.error, torch.zeros_like(solution.value, dtype=torch.bool),
        ConvolutionMaps(module).gradient(output.gradient, layer.call.entering.shape),
    )  # fmt: skip
    return found, _solved(layer, found, equations, solution)


@peels(nn.AvgPool2d)
def _average(module: nn.AvgPool2d, layer: Layer, output: Signal) -> tuple[Signal, Step]:
    """A convolution of each channel on its own, whose windows have to overlap."""
    if module.ceil_mode:
        raise ValueError("it rounds its size up")
    channels = layer.call.entering.shape[1]
    same = nn.Conv2d(
        channels, channels, module.kernel_size, module.stride, module.padding,
        groups=channels, bias=False, dtype=output.value.dtype,
    )  # fmt: skip
    nn.init.constant_(same.requires_grad_(False).weight, 1 / same.weight[0].numel())
    # What is divided by, where pixels of the padding do not count.
    ones = torch.ones(layer.call.entering.shape, dtype=output.value.dtype)
    factor = same(ones) / module(ones)
    scaled = Signal(
        output.value * factor, output.error * factor, output.at_most, output.gradient / factor
    )
    return _convolution(same, layer, scaled)


def convolution_equations(module: nn.Conv2d, layer: Layer, output: Signal) -> Equations:
    """The equations for a convolution's input: of its known outputs, and of its gradient."""
    maps = ConvolutionMaps(module)
    bias = 0.0 if module.bias is None else module.bias.reshape(1, -1, 1, 1)
    known, counted = output.exact, output.trust()
    trust = counted[known]
    targets = [((output.value - bias)[known] * trust)[None]]
    if layer.weight is not None:
        targets.append(layer.weight[None])
    shape = layer.call.entering.shape

    def sides(x: Tensor) -> list[Tensor]:
        leaving, products = maps.both(x, output.gradient)
        return [leaving[:, known] * trust, products][: len(targets)]

    if shape[-1] * shape[-2] > LARGEST_PLANE:
        return Equations(sides, targets, shape)
    return Equations(
        sides, targets, shape,
        lambda: maps.gram(output.gradient, counted, shape)[: len(targets)],
    )  # fmt: skip


def _solved(layer: Layer, found: Signal, equations: Equations, solution: Solution) -> Step:
    return Step(
        layer.call.name, type(layer.call.module).__name__, found.value.numel(), equations.count,
        solution.rank, solution.residual, solution.condition, float(found.known.double().mean()),
    )  # fmt: skip
