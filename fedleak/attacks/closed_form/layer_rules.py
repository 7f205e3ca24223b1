"""How each layer type is inverted: one function per type, registered with :func:`layer_rule`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.closed_form.convolution import ConvolutionMaps
from fedleak.attacks.closed_form.estimates import Estimate
from fedleak.attacks.closed_form.least_squares import Equations, Solution, solve
from fedleak.attacks.closed_form.linear import linear_input
from fedleak.attacks.module_calls import Call
from fedleak.attacks.module_facts import DROPOUTS, draws

# Outputs of a ReLU, relative to the largest one: up to the first share the unit was inactive, above
# the second one active. The same in standard errors. In between, a unit is undetermined.
ZERO, SMALL = 1e-8, 1e-6
INACTIVE_ERRORS, ACTIVE_ERRORS = 3.0, 6.0
# A unit is undetermined, too, if its output is less than this many times as far above 0, in
# standard errors, as the lowest estimated output is below 0: the true outputs are not negative, so
# that the lowest one shows how far off the error estimates are.
MARGIN = 1.5
# Relative rounding error of a float32 gradient.
ROUNDING = 1e-7
# Largest plane, in pixels, for which the solver is preconditioned: the Gram matrix of a plane has
# that many rows and columns.
LARGEST_PLANE = 1024
# Most unknowns for which the Gram matrix of all of them is factorised where that does not suffice.
LARGEST_WHOLE = 4096
# Steps of Newton's method for the inverse of GELU.
NEWTON_STEPS = 60


class Step(NamedTuple):
    """How one layer was inverted, or why the inversion was not accurate enough.

    Args:
        layer: name of the layer.
        kind: its type.
        unknowns: number of entries of its input.
        equations: number of equations; for a layer without equations, the entries of its output.
        rank: estimated number of independent equations.
        residual: norm of the residual, relative to that of the right sides.
        condition: estimated condition number; 1 where nothing was solved.
        known: share of the input's entries that are known or have an upper bound.
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
    """What a rule is told of the layer besides its module.

    Args:
        call: the layer's call in a forward pass on other data: use the shapes of its tensors, not
            their values.
        weight_gradient: gradient of the layer's weight; None if it has no weight or the client
            does not train it.
        iterations: maximum number of iterations of a solver.
        seed: seed for what a solver draws.
        weight_known: True where the weight's gradient is exact. If None, all of it is.
    """

    call: Call
    weight_gradient: Tensor | None
    iterations: int
    seed: int
    weight_known: Tensor | None = None


# Any: the module is of the types that the rule is registered for.
LayerRule = Callable[[Any, Layer, Estimate], tuple[Estimate, Step]]
LAYER_RULES: dict[type[nn.Module], LayerRule] = {}
"""Layer type -> its rule. Subclasses are not matched, as they may compute something else."""


def layer_rule(*types: type[nn.Module]) -> Callable[[LayerRule], LayerRule]:
    """Decorator that registers a function as the rule for inverting layers of these exact types.

    The function is called with the module in float64, its :class:`Layer` and the estimate of its
    output. It returns the estimate of its input, which includes the gradient with respect to the
    input, and a :class:`Step`. It raises ValueError with the reason if the layer cannot be
    inverted. A later registration replaces an earlier one.

    Args:
        types: the layer types.
    """

    def register(rule: LayerRule) -> LayerRule:
        LAYER_RULES.update(dict.fromkeys(types, rule))
        return rule

    return register


def direct_step(layer: Layer, found: Estimate) -> Step:
    """The step of a layer that is inverted entry by entry, without a system of equations.

    Args:
        layer: the layer.
        found: estimate of its input.
    """
    call, constrained = layer.call, found.constrained
    return Step(
        call.name, type(call.module).__name__, call.input.numel(), call.output.numel(),
        int(constrained.sum()), 0.0, 1.0, float(constrained.double().mean()),
    )  # fmt: skip


@layer_rule(*DROPOUTS)
def _dropout(module: nn.Module, layer: Layer, output: Estimate) -> tuple[Estimate, Step]:
    if draws(module):
        raise ValueError("it drops entries at random")
    return _reshape(module, layer, output)


@layer_rule(nn.Flatten, nn.Identity, nn.Unflatten)
def _reshape(module: nn.Module, layer: Layer, output: Estimate) -> tuple[Estimate, Step]:
    found = output.reshape(layer.call.input.shape)
    return found, direct_step(layer, found)


def invert_increasing(
    module: nn.Module, layer: Layer, output: Estimate, inverse: Callable[[Tensor], Tensor]
) -> tuple[Estimate, Step]:
    """Invert an elementwise activation that is strictly increasing.

    The slope at the input scales the gradient, and its inverse the standard error. An upper bound
    of the output becomes one of the input.

    Args:
        module: the activation.
        layer: its call.
        output: estimate of its output.
        inverse: the inverse of the activation; it has to be finite for estimates that lie outside
            the range of the activation by their error.
    """
    value = inverse(output.value)
    point = value.detach().requires_grad_()
    # A copy, as the activation may work in place.
    (slope,) = torch.autograd.grad(module(point.clone()).sum(), point)
    tiny = torch.finfo(value.dtype).tiny
    found = Estimate(
        value.detach(), output.error / slope.clamp_min(tiny), output.is_bound,
        output.gradient * slope,
    )  # fmt: skip
    return found, direct_step(layer, found)


@layer_rule(nn.Sigmoid)
def _sigmoid(module: nn.Module, layer: Layer, output: Estimate) -> tuple[Estimate, Step]:
    edge = torch.finfo(torch.float32).eps
    return invert_increasing(module, layer, output, lambda y: y.clamp(edge, 1 - edge).logit())


@layer_rule(nn.Tanh)
def _tanh(module: nn.Module, layer: Layer, output: Estimate) -> tuple[Estimate, Step]:
    edge = torch.finfo(torch.float32).eps
    return invert_increasing(module, layer, output, lambda y: y.clamp(edge - 1, 1 - edge).atanh())


@layer_rule(nn.LeakyReLU)
def _leaky_relu(module: nn.LeakyReLU, layer: Layer, output: Estimate) -> tuple[Estimate, Step]:
    slope = module.negative_slope
    if slope <= 0:
        raise ValueError(f"with a negative slope of {slope:g} it is not invertible")
    return invert_increasing(module, layer, output, lambda y: torch.where(y > 0, y, y / slope))


@layer_rule(nn.ReLU)
def _relu(module: nn.ReLU, layer: Layer, output: Estimate) -> tuple[Estimate, Step]:
    """Active units pass their value; inactive ones give the bound 0; others are undetermined."""
    value, largest, known = output.value, output.value.abs().amax(), output.known
    error = _smoothed_error(output.error, known).clamp_min(torch.finfo(value.dtype).tiny)
    zero = torch.maximum(ZERO * largest, INACTIVE_ERRORS * error)
    likely = torch.maximum(SMALL * largest, ACTIVE_ERRORS * error)
    lowest = torch.where(known & (value < -ZERO * largest), value / error, 0.0).amin()
    clear = torch.maximum(likely, -MARGIN * lowest * error)
    inactive = known & (value <= zero)
    unknown = torch.full_like(error, torch.inf)
    found = Estimate(
        torch.where(inactive, 0.0, value), torch.where(value > clear, output.error, unknown),
        inactive, output.gradient * (value > torch.where(known, likely, 0.0)),
    )  # fmt: skip
    return found, direct_step(layer, found)


def _smoothed_error(error: Tensor, known: Tensor) -> Tensor:
    """Standard errors, at least the root mean square of those of the neighbouring known entries.

    A solver's errors are estimated from a single probe. What a convolution determines badly lies
    close together: the same pixels in all channels.
    """
    squares, count = torch.where(known, error, 0.0).square(), known.to(error)
    if error.dim() == 4:
        squares, count = (
            functional.avg_pool2d(part.mean(dim=1, keepdim=True), 3, stride=1, padding=1)
            for part in (squares, count)
        )
    else:
        squares, count = squares.mean(), count.mean()
    near = (squares / count.clamp_min(torch.finfo(error.dtype).tiny)).sqrt().expand_as(error)
    return torch.where(known, torch.maximum(error, near), error)


@layer_rule(nn.GELU)
def _gelu(module: nn.GELU, layer: Layer, output: Estimate) -> tuple[Estimate, Step]:
    """Invertible where the output is positive; a negative output has two possible inputs."""
    value = output.value
    positive = value > ACTIVE_ERRORS * output.error.clamp_max(output.rms)
    point = value.clamp_min(0) + 0.2  # above the solution
    for _ in range(NEWTON_STEPS):
        at = point.detach().requires_grad_()
        (slope,) = torch.autograd.grad(module(at).sum(), at)
        # For positive inputs the slope is between 0.5 and 1.2.
        point = (point - (module(point) - value) / slope.clamp_min(0.5)).clamp_min(0)
    at = point.detach().requires_grad_()
    (slope,) = torch.autograd.grad(module(at).sum(), at)
    unknown = torch.full_like(value, torch.inf)
    found = Estimate(
        torch.where(positive, point, 0.0).detach(),
        torch.where(positive, output.error / slope, unknown),
        torch.zeros_like(output.is_bound),
        output.gradient * slope * positive,
    )
    return found, direct_step(layer, found)


@layer_rule(nn.Linear)
def _linear(module: nn.Linear, layer: Layer, output: Estimate) -> tuple[Estimate, Step]:
    """The input follows from the gradients of weight and output; a bias is not needed."""
    if layer.weight_gradient is None:
        raise ValueError("the gradient of its weight is 0 or missing")
    if output.value.dim() != 2:
        raise ValueError("its input is not one vector per sample")
    if len(output.value) > 1:
        value, error = _inputs_of_batch(layer.weight_gradient, output.gradient)
    else:
        known = linear_input(layer.weight_gradient, output.gradient[0])
        value = known.value[None]
        error = torch.full_like(value, known.error) * value.square().mean().sqrt()
    found = Estimate(
        value, error, torch.zeros_like(value, dtype=torch.bool), output.gradient @ module.weight
    )
    residual = layer.weight_gradient - output.gradient.mT @ value
    singular = torch.linalg.svdvals(output.gradient)
    independent = int((singular > ROUNDING * singular[0]).sum())
    return found, Step(
        layer.call.name, type(module).__name__, value.numel(), layer.weight_gradient.numel(),
        independent * value.shape[1], float(residual.norm() / layer.weight_gradient.norm()),
        float(singular[0] / singular[-1]), float(found.known.double().mean()),
    )  # fmt: skip


def _inputs_of_batch(weight_gradient: Tensor, output_gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares solution of ``weight_gradient = output_gradient^T inputs``, and its errors."""
    samples, rows = output_gradient.shape
    if rows <= samples:
        raise ValueError(f"{rows} outputs are too few for {samples} samples")
    inverse = torch.linalg.pinv(output_gradient.mT, rtol=ROUNDING)
    value = inverse @ weight_gradient
    residual = weight_gradient - output_gradient.mT @ value
    variance = residual.square().sum(dim=0) / (rows - samples)
    # Rounding bounds the residual variance from below.
    variance = variance.clamp_min(float((ROUNDING * weight_gradient).square().mean()))
    error = torch.outer(inverse.square().sum(dim=1), variance).sqrt()
    if int(torch.linalg.matrix_rank(output_gradient, rtol=ROUNDING)) < samples:
        error = torch.full_like(error, torch.inf)
    return value, error


@layer_rule(nn.Conv2d)
def _convolution(module: nn.Conv2d, layer: Layer, output: Estimate) -> tuple[Estimate, Step]:
    if output.value.dim() != 4:
        raise ValueError("its input has no batch dimension")
    equations = convolution_equations(module, layer, output)
    unknowns = layer.call.input.numel()
    if equations.count < unknowns:
        raise ValueError(f"{equations.count} equations for {unknowns} unknowns")
    solution = solve(equations, iterations=layer.iterations, seed=layer.seed)
    found = Estimate(
        solution.value, solution.error, torch.zeros_like(solution.value, dtype=torch.bool),
        ConvolutionMaps(module).input_gradient(output.gradient, layer.call.input.shape),
    )  # fmt: skip
    return found, _solver_step(layer, found, equations, solution)


@layer_rule(nn.AvgPool2d)
def _average(module: nn.AvgPool2d, layer: Layer, output: Estimate) -> tuple[Estimate, Step]:
    """A convolution of each channel on its own; only overlapping windows determine its input."""
    if module.ceil_mode:
        raise ValueError("ceil_mode is not supported")
    channels = layer.call.input.shape[1]
    same = nn.Conv2d(
        channels, channels, module.kernel_size, module.stride, module.padding,
        groups=channels, bias=False, dtype=output.value.dtype,
    )  # fmt: skip
    nn.init.constant_(same.requires_grad_(False).weight, 1 / same.weight[0].numel())
    # The two differ in the divisor where padding does not count.
    ones = torch.ones(layer.call.input.shape, dtype=output.value.dtype)
    factor = same(ones) / module(ones)
    scaled = Estimate(
        output.value * factor, output.error * factor, output.is_bound, output.gradient / factor
    )
    return _convolution(same, layer, scaled)


def convolution_equations(module: nn.Conv2d, layer: Layer, output: Estimate) -> Equations:
    """Equations for the input of a convolution, from its output and from its weight's gradient.

    Args:
        module: the convolution, in float64.
        layer: its call and the gradient of its weight.
        output: estimate of its output; only exact entries give equations.
    """
    maps = ConvolutionMaps(module)
    bias = 0.0 if module.bias is None else module.bias.reshape(1, -1, 1, 1)
    exact, weights = output.exact, output.weights()
    exact_weights = weights[exact]
    targets = [((output.value - bias)[exact] * exact_weights)[None]]
    known = layer.weight_known
    if layer.weight_gradient is not None:
        given = layer.weight_gradient
        targets.append((given if known is None else given[known])[None])
    shape = layer.call.input.shape

    def sides(x: Tensor) -> list[Tensor]:
        outputs, products = maps.outputs_and_weight_gradients(x, output.gradient)
        products = products if known is None else products[:, known]
        return [outputs[:, exact] * exact_weights, products][: len(targets)]

    def gram() -> Sequence[Tensor]:
        return maps.gram_matrices(output.gradient, weights, shape)[: len(targets)]

    def whole(scales: Sequence[float]) -> Tensor:
        return maps.whole_gram_matrix(output.gradient, weights, shape, scales)

    return Equations(
        sides, targets, shape,
        gram if shape[-1] * shape[-2] <= LARGEST_PLANE else None,
        whole if shape.numel() <= LARGEST_WHOLE else None,
    )  # fmt: skip


def _solver_step(layer: Layer, found: Estimate, equations: Equations, solution: Solution) -> Step:
    return Step(
        layer.call.name, type(layer.call.module).__name__, found.value.numel(), equations.count,
        solution.rank, solution.residual, solution.condition, float(found.known.double().mean()),
    )  # fmt: skip
