"""Layers taken off: what is found against what entered, gradients against autograd."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks.closed_form.convolution import ConvolutionMaps
from fedleak.attacks.closed_form.estimates import Signal
from fedleak.attacks.closed_form.layer_inversion import peel
from fedleak.attacks.closed_form.layer_rules import PEELS, Layer, Step, peels
from fedleak.attacks.closed_form.least_squares import Equations, solve
from fedleak.attacks.module_calls import Call


def rand(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# Between their strides are pixels that these never look at.
SPARSE: list[dict[str, Any]] = [
    {"stride": 2, "padding": 1, "groups": 2, "dilation": 2},
    {"stride": 3, "padding": 1, "groups": 4},
]
CONVOLUTIONS: list[dict[str, Any]] = [
    {"stride": 1, "padding": 0},
    {"stride": 2, "padding": 2},
    {"stride": (2, 1), "padding": (1, 2), "kernel_size": (3, 4)},
    {"stride": 1, "padding": "same", "kernel_size": 4},
    {"stride": 1, "padding": "valid", "bias": False},
    # Paddings in which pixels stand twice.
    *({"padding": 1, "padding_mode": mode} for mode in ("reflect", "replicate", "circular")),
]


def conv(**settings: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(4, 16, **{"kernel_size": 3} | settings).double()


def case(layer: nn.Module, value: Tensor) -> tuple[Call, Signal, dict[str, Tensor], Tensor]:
    """A layer, its output known exactly, its weights' gradients, and its input's by autograd."""
    entering = value.clone().requires_grad_()
    leaving = layer(entering.clone())
    upstream = rand(*leaving.shape, seed=1)
    names = [f"layer.{name}" for name, _ in layer.named_parameters()]
    found = torch.autograd.grad((leaving * upstream).sum(), [entering, *layer.parameters()])
    leaving = leaving.detach()
    exact = Signal(
        leaving, torch.full_like(leaving, 1e-12), torch.zeros_like(leaving, dtype=torch.bool),
        upstream,
    )  # fmt: skip
    call = Call("layer", layer.requires_grad_(False), value, leaving)
    return call, exact, dict(zip(names, found[1:], strict=True)), found[0]


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
    # Of several samples there is one gradient, to which all of them add.
    (nn.Linear(9, 7).double(), rand(3, 9)),
    (conv(padding=1), rand(2, 4, 6, 7)),
    (conv(padding=1, groups=2), rand(3, 4, 6, 7)),
    # Sizes at which the strides leave no pixel out.
    (conv(stride=2, padding=1, groups=2), rand(1, 4, 7, 7)),
    (conv(stride=3, padding=1, groups=4), rand(1, 4, 5, 5)),
    (conv(padding=2, dilation=2, groups=2), rand(1, 4, 6, 7)),
    (nn.AvgPool2d(2, stride=1, padding=1), rand(1, 3, 5, 6)),
    (nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), rand(2, 2, 6, 7)),
]


@pytest.mark.parametrize(("layer", "value"), INVERTIBLE, ids=lambda item: str(item)[:60])
def test_layer_comes_off(layer: nn.Module, value: Tensor) -> None:
    call, output, gradient, expected = case(layer, value)
    off, steps, reason = peel([call], output, gradient, iterations=3000, seed=0)
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
def test_pixels_that_nothing_looks_at_are_not_known(settings: dict[str, Any]) -> None:
    call, output, gradient, expected = case(conv(**settings), rand(1, 4, 6, 7))
    assert not bool((expected != 0).all())
    off, steps, reason = peel([call], output, gradient, iterations=3000, seed=0)
    assert off == []
    (step,) = steps
    assert step.rank < step.unknowns
    assert reason is not None
    assert "of its input known" in reason


def test_layer_that_is_not_trained_comes_off_by_its_outputs_alone() -> None:
    """Zeros are what a client sends for such a weight: they are no equations."""
    call, output, gradient, _ = case(conv(padding=1), rand(1, 4, 6, 7))
    gradient["layer.weight"] = torch.zeros_like(gradient["layer.weight"])
    ((_, found),), (step,), reason = peel([call], output, gradient, iterations=3000, seed=0)
    assert reason is None
    assert step.equations == output.value.numel()
    torch.testing.assert_close(found.value, rand(1, 4, 6, 7), rtol=1e-5, atol=1e-5)


def test_relu_gives_values_and_upper_bounds() -> None:
    value = rand(1, 3, 4, 4)
    call, output, gradient, expected = case(nn.ReLU(), value)
    ((_, found),), _, reason = peel([call], output, gradient, iterations=1, seed=0)
    assert reason is None
    assert torch.equal(found.known & ~found.at_most, value > 0)
    assert torch.equal(found.at_most, value <= 0)
    assert torch.equal(found.value[value > 0], value[value > 0])
    assert (found.value[found.at_most] == 0).all()
    torch.testing.assert_close(found.gradient, expected)


def test_what_is_in_doubt_is_not_taken_for_known() -> None:
    """An output near 0 with a large error is neither a value nor an upper bound."""
    call, output, gradient, _ = case(nn.ReLU(), rand(1, 200))
    error = torch.full_like(output.value, 1e-9)
    error[0, :3] = 10.0
    unsure = Signal(output.value, error, output.at_most, output.gradient)
    ((_, found),), _, _ = peel([call], unsure, gradient, iterations=1, seed=0)
    assert not (found.known | found.at_most)[0, :3].any()
    assert (found.known | found.at_most)[0, 3:].all()
    # With more than 2 % in doubt, the layer is left on.
    error[0, :10] = 10.0
    off, _, reason = peel([call], unsure, gradient, iterations=1, seed=0)
    assert off == []
    assert reason is not None
    assert "95.0%" in reason


def test_gelu_comes_off_on_the_branch_that_rises_alone() -> None:
    value = rand(1, 50).abs() + 0.01
    call, output, gradient, expected = case(nn.GELU(), value)
    ((_, found),), _, reason = peel([call], output, gradient, iterations=1, seed=0)
    assert reason is None
    torch.testing.assert_close(found.value, value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.gradient, expected, rtol=1e-5, atol=1e-8)
    # An output below 0 is that of two inputs, with two slopes.
    call, output, gradient, _ = case(nn.GELU(), rand(1, 50))
    off, _, reason = peel([call], output, gradient, iterations=1, seed=0)
    assert off == []
    assert reason is not None
    assert "of its input known" in reason


def test_several_layers_from_last_to_first() -> None:
    layers = [conv(), nn.Sigmoid(), nn.Conv2d(16, 20, 3, padding=1).double(), nn.Tanh()]
    value, calls = rand(1, 4, 6, 7), []
    entering: Tensor = value
    tensors = [entering.clone().requires_grad_()]
    for layer in layers:
        tensors.append(layer(tensors[-1]))
    upstream = rand(*tensors[-1].shape, seed=1)
    names, parameters = zip(
        *((f"{i}.{n}", p) for i, m in enumerate(layers) for n, p in m.named_parameters()),
        strict=True,
    )
    found = torch.autograd.grad((tensors[-1] * upstream).sum(), [tensors[0], *parameters])
    calls = [
        Call(str(i), layer.requires_grad_(False), tensors[i].detach(), tensors[i + 1].detach())
        for i, layer in enumerate(layers)
    ]
    leaving = tensors[-1].detach()
    last = Signal(
        leaving, torch.full_like(leaving, 1e-12), torch.zeros_like(leaving, dtype=torch.bool),
        upstream,
    )  # fmt: skip
    gradient = dict(zip(names, found[1:], strict=True))
    off, steps, reason = peel(calls, last, gradient, iterations=4000, seed=0)
    assert reason is None
    assert [step.layer for step in steps] == ["3", "2", "1", "0"]
    torch.testing.assert_close(off[-1][1].value, value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(off[-1][1].gradient, found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "value", "says"),
    [
        (nn.Softmax(dim=1), rand(1, 4), "Softmax, which cannot be taken off"),
        (nn.AvgPool2d(2), rand(1, 2, 4, 6), "AvgPool2d): 12 equations for 48 unknowns"),
        (nn.AvgPool2d(2, ceil_mode=True), rand(1, 2, 5, 6), "it rounds its size up"),
        (nn.Conv2d(9, 1, 2, stride=2).double(), rand(1, 9, 6, 6), "45 equations for 324 unknowns"),
        (nn.Linear(3, 4).double(), rand(1, 2, 3), "no single vector"),
        (nn.LeakyReLU(0.0), rand(1, 4), "slope of 0"),
    ],
    ids=lambda item: str(item)[:30],
)
def test_what_cannot_be_taken_off_says_why(layer: nn.Module, value: Tensor, says: str) -> None:
    call, output, gradient, _ = case(layer, value)
    off, steps, reason = peel([call], output, gradient, iterations=10, seed=0)
    assert off == steps == []
    assert reason is not None
    assert says in reason


class Doubled(nn.Module):
    """A layer of one's own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_a_new_layer_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    call, output, gradient, expected = case(Doubled(), rand(1, 5))
    monkeypatch.setitem(PEELS, Doubled, PEELS[nn.ReLU])  # taken out again after the test

    @peels(Doubled)
    def doubled(module: Doubled, layer: Layer, output: Signal) -> tuple[Signal, Step]:
        found = Signal(output.value / 2, output.error / 2, output.at_most, 2 * output.gradient)
        return found, Step(layer.call.name, "Doubled", 5, 5, 5, 0.0, 1.0, 1.0)

    ((_, found),), _, reason = peel([call], output, gradient, iterations=1, seed=0)
    assert reason is None
    torch.testing.assert_close(found.value, rand(1, 5))
    torch.testing.assert_close(found.gradient, expected)


# ---------------------------------------------------------------------------------- the equations


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("settings", [*CONVOLUTIONS, *SPARSE], ids=str)
def test_maps_of_a_convolution(settings: dict[str, Any], samples: int) -> None:
    module = conv(**settings | {"bias": False})
    value = rand(2, samples, 4, 6, 7)
    leaving = rand(*module(value[0]).shape, seed=1)
    outputs, products = ConvolutionMaps(module).both(value, leaving)
    for row in range(2):
        expected = module(value[row])
        torch.testing.assert_close(outputs[row], expected)
        (gradient,) = torch.autograd.grad((expected * leaving).sum(), module.weight)
        torch.testing.assert_close(products[row], gradient)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("settings", [*CONVOLUTIONS, *SPARSE], ids=str)
def test_gram_matrices_of_a_plane(settings: dict[str, Any], samples: int) -> None:
    """Against the maps applied to every unit vector of every channel of every sample."""
    module = conv(**settings | {"bias": False}).requires_grad_(False)
    shape = (samples, 4, 3, 4) if module.kernel_size[0] <= 3 else (samples, 4, 5, 4)
    leaving = rand(*module(torch.zeros(shape).double()).shape, seed=1)
    counted = (rand(*leaving.shape, seed=2) > 0).double()
    planes, size = samples * 4, shape[2] * shape[3]
    basis = torch.eye(planes * size, dtype=torch.float64).reshape(-1, *shape)
    outputs, products = ConvolutionMaps(module).both(basis, leaving)
    found = ConvolutionMaps(module).gram(leaving, counted, shape)
    for rows, gram in zip(((outputs * counted), products), found, strict=True):
        columns = rows.reshape(planes, size, -1)
        expected = (columns @ columns.mT).mean(dim=0)
        torch.testing.assert_close(gram, expected)


def test_rank_and_error_of_equations_that_do_not_determine_all() -> None:
    """A matrix of known rank: what lies in its null space is not known, and the rest is."""
    size, rank = 30, 21
    matrix = rand(50, size)
    matrix[:, rank:] = 0
    truth = rand(1, size, seed=3)
    equations = Equations(lambda x: [x @ matrix.T], [truth @ matrix.T], truth.shape)
    solution = solve(equations, iterations=500, seed=0)
    torch.testing.assert_close(solution.value[:, :rank], truth[:, :rank], rtol=1e-5, atol=1e-5)
    assert float(solution.error[:, :rank].max()) < 1e-4
    assert float(solution.error[:, rank:].min()) > 1e-3
    assert abs(solution.rank - rank) <= 6  # an estimate, from one random vector


def test_blocks_weigh_alike_whatever_their_units() -> None:
    first, second = rand(8, 6), rand(9, 6, seed=1)
    truth = rand(1, 6, seed=2)

    def blocks(x: Tensor) -> list[Tensor]:
        return [x @ first.T, 1e6 * (x @ second.T)]

    equations = Equations(blocks, list(blocks(truth)), truth.shape)
    left = equations.left(torch.eye(6, dtype=torch.float64))
    for part in left.split([8, 9], dim=1):
        assert float(torch.linalg.matrix_norm(part, 2)) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(("noise", "seeds"), list(itertools.product((1e-6, 1e-3), [3])))
def test_estimated_error_follows_the_noise(noise: float, seeds: int) -> None:
    """Where more is unexplained than rounding, errors are larger by as much."""
    matrix = rand(60, 30)
    truth = rand(1, 30, seed=5)
    ratios = []
    for seed in range(seeds):
        right = truth @ matrix.T
        right = right * (1 + noise * rand(1, 60, seed=10 + seed))
        solution = solve(
            Equations(lambda x: [x @ matrix.T], [right], truth.shape), iterations=500, seed=seed
        )
        real = (solution.value - truth).square().mean().sqrt()
        ratios.append(float(solution.error.square().mean().sqrt() / real))
    assert 0.2 < float(np.mean(ratios)) < 5


def test_nothing_to_take_off() -> None:
    """The known layer is the first one, or stands behind a gap."""
    _, output, gradient, _ = case(nn.Identity(), rand(1, 5))
    assert peel([], output, gradient, iterations=1, seed=0) == ([], [], None)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_linear_layers_step_says_what_its_equations_leave_unexplained(samples: int) -> None:
    call, output, gradient, _ = case(nn.Linear(9, 7).double(), rand(samples, 9))
    noisy = gradient | {"layer.weight": gradient["layer.weight"] + 0.01 * rand(7, 9, seed=5)}
    _, (clean_step,), _ = peel([call], output, gradient, iterations=1, seed=0)
    _, (step,), _ = peel([call], output, noisy, iterations=1, seed=0)
    expected, *_ = np.linalg.lstsq(output.gradient.T.numpy(), noisy["layer.weight"].numpy())
    left = noisy["layer.weight"].numpy() - output.gradient.T.numpy() @ expected
    share = np.linalg.norm(left) / np.linalg.norm(noisy["layer.weight"].numpy())
    assert step.residual == pytest.approx(float(share), rel=0.05)
    assert clean_step.residual < 1e-12
    assert step.equations == 63
    assert step.condition == pytest.approx(float(np.linalg.cond(output.gradient.numpy())))
