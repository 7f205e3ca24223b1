"""From a sample's signal in the last hidden layer down to the sample, with no other one known."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fedleak.attacks.exact_batches.factorisation import Factors
from fedleak.attacks.exact_batches.network import Network
from fedleak.attacks.exact_batches.remainder import Remainder
from fedleak.attacks.exact_batches.two_state import Signals

# Rounds of reweighted least squares, the weights' widths, and the cost of a negative entry
# relative to that of a positive one.
ITERATIONS = 60
NARROWER = 0.85
FIRST_WIDTH = 0.3
LAST_WIDTH = 1e-4
NEGATIVE = 20.0
# An entry counts as 0 up to this share of the largest, from one round of least squares to the next.
ZEROS = (1e-3, 1e-4, 1e-5)
# Equations for each unknown, at least.
EQUATIONS = 1.1
# Bounds are this many standard deviations of the equations' residuals.
DEVIATIONS = 6.0


class Descended(NamedTuple):
    """Samples, with what the equations say of them.

    Args:
        inputs: ``(samples, entries)``.
        labels: ``(samples,)``.
        signals: signals in the last hidden layer, ``(samples, units)``.
        bounds: bound on the norm of each input's error, from the residuals of the equations that
            gave it, ``(samples,)``.
    """

    inputs: Tensor
    labels: Tensor
    signals: Tensor
    bounds: Tensor


class Solution(NamedTuple):
    """A vector in the span of some rows, and a bound on its error's norm.

    Args:
        value: ``(entries,)``.
        bound: infinite where the equations do not settle it.
        zeros: size of the largest entry that was taken for 0; 0 if none was.
    """

    value: Tensor
    bound: float
    zeros: float = 0.0


def descend(remainder: Remainder, signals: Signals, chosen: list[int]) -> list[Descended]:
    """The samples with these signals.

    The input h of the last hidden layer is an output of a ReLU: no entry is negative, many are 0,
    it lies in the span of the rows, and its pairing is 1 with its own signal and 0 with every other
    one. These settle it, without other signals as long as the batch is small.
    Where a unit of a layer below is active, its output is linear in the layer's input, which lies
    in the span of that layer's rows: a least-squares problem, layer by layer down to the sample.

    Args:
        remainder: what is left of the gradient; its network has at least two hidden layers, each
            with a bias.
        signals: signals of its last hidden layer, in the basis of the factors' columns.
        chosen: numbers of the signals whose samples are wanted.

    Returns:
        One sample for each of these that has enough equations.
    """
    last = remainder.network.hidden - 1
    factors = remainder.factors(last)
    coordinates, residuals = signed(signals)
    found = []
    pairings = coordinates / factors.sizes
    for at in chosen:
        own, residual = coordinates[at], residuals[at]
        rows, pairing = _without_others(factors.rows, pairings, at)
        spread = spread_of(remainder, factors, last, factors.rows @ rows.T)
        hidden = settled(rows, pairing, spread)
        # The entry of the bias is 1: it tells the signal's scale.
        factor = hidden.value[-1]
        if not float(factor) > 0:
            continue
        size = float(factor)
        output = Solution(hidden.value[:-1] / factor, hidden.bound / size, hidden.zeros / size)
        sample = sample_below(remainder, last, output)
        if sample is not None:
            found.append(
                Descended(
                    sample.value[None],
                    residual.argmin()[None],
                    (factors.columns @ (own * factor))[None],
                    torch.tensor([sample.bound], dtype=torch.float64),
                )
            )
    return found


def sample_below(remainder: Remainder, layer: int, entering: Solution) -> Solution | None:
    """The sample that has a known input of a layer; None where a layer has too few equations.

    Args:
        remainder: what is left of the gradient.
        layer: number of the layer.
        entering: its input, without the 1 for the bias.
    """
    output = entering
    for at in reversed(range(layer)):
        factors = remainder.factors(at)
        spread = spread_of(remainder, factors, at)
        below = _input_of(remainder.network, at, factors, output, spread)
        if below is None:
            return None
        output = below
    return output


def signed(signals: Signals) -> tuple[Tensor, Tensor]:
    """Coordinates and residuals with the sign for which the label's residual is negative.

    It is the only negative one, and so the largest.

    Args:
        signals: signals up to a factor each.
    """
    largest = signals.residuals.abs().argmax(dim=1, keepdim=True)
    sign = -signals.residuals.gather(1, largest).sign()
    return sign * signals.coordinates, sign * signals.residuals


def spread_of(
    remainder: Remainder, factors: Factors, layer: int, change: Tensor | None = None
) -> Tensor:
    """Standard deviation of the norm of the error of each row of the factors, by the noise.

    Args:
        remainder: what is left of the gradient.
        factors: of the layer.
        layer: number of the layer.
        change: coordinates of other rows in those of the factors, ``(rank, rows)``.
    """
    noise = remainder.noise(factors, layer) * math.sqrt(factors.rows.shape[1])
    own: Tensor = noise / factors.sizes
    return own if change is None else (change.square().T @ own.square()).sqrt()


def _without_others(rows: Tensor, pairings: Tensor, at: int) -> tuple[Tensor, Tensor]:
    """The part of the rows' span that has a pairing of 0 with all signals but one.

    Args:
        rows: ``(rank, in + 1)``.
        pairings: linear functions of the coordinates, ``(signals, rank)``.
        at: number of the one.

    Returns:
        Orthonormal rows of that part, and the pairing of the one in their coordinates.
    """
    others = torch.cat([pairings[:at], pairings[at + 1 :]])
    if len(others) == 0:
        return rows, pairings[at]
    free = torch.linalg.qr(others.T, mode="complete").Q[:, len(others) :]
    return free.T @ rows, free.T @ pairings[at]


def settled(rows: Tensor, pairing: Tensor, spread: Tensor, start: Tensor | None = None) -> Solution:
    """The vector in the rows' span with the most entries of 0, none negative, and a pairing of 1.

    The sum of the entries' logarithms is minimised by reweighted least squares; then least squares
    on the entries of 0.

    Args:
        rows: orthonormal rows, ``(rank, in + 1)``; the last entry is the bias's.
        pairing: the linear function of the coordinates that is 1, ``(rank,)``.
        spread: standard deviation of each row's error, ``(rank,)``.
        start: first weights of the entries, ``(in,)``. If None, all are 1.
    """
    entries, unknowns = rows[:, :-1], len(rows)
    weights = torch.ones(entries.shape[1], dtype=rows.dtype) if start is None else start
    value, width = weights, FIRST_WIDTH
    for _ in range(ITERATIONS):
        value = _paired(entries, weights, pairing) @ entries
        size = value.square().mean().sqrt()
        cost = torch.where(value < 0, NEGATIVE, 1.0)
        weights = cost / (value.abs() / size).clamp_min(width).square()
        width = max(width * NARROWER, LAST_WIDTH)
    found = Solution(value.new_zeros(rows.shape[1]), torch.inf)
    for share in ZEROS:
        zero = (value.abs() <= share * value.abs().max()).to(rows)
        count = int(zero.sum())
        if count < EQUATIONS * unknowns:
            break
        coordinates = _paired(entries, zero, pairing)
        value = coordinates @ entries
        off = (value * zero).norm() / max(count - unknowns + 1, 1) ** 0.5
        sizes = torch.linalg.svdvals(entries * zero).clamp_min(1e-12)[: unknowns - 1]
        # Errors of the rows move the equations as well as the vector that solves them.
        least = float(sizes.min()) if len(sizes) else torch.inf
        own = float((coordinates * spread).norm()) * (1 + 1 / least)
        bound = DEVIATIONS * (float(off) * float(sizes.pow(-2).sum().sqrt()) + own)
        found = Solution(coordinates @ rows, bound, float((value * zero).abs().max()))
    return found


def _paired(entries: Tensor, weights: Tensor, pairing: Tensor) -> Tensor:
    """Coordinates of least weighted squares whose pairing is 1."""
    system = (entries * weights) @ entries.T
    diagonal = system.diagonal()
    diagonal += 1e-15 * diagonal.mean()
    solution: Tensor = torch.linalg.solve_ex(system, pairing[:, None]).result[:, 0]
    return solution / (pairing @ solution)


def _input_of(
    network: Network, layer: int, factors: Factors, output: Solution, spread: Tensor
) -> Solution | None:
    """A layer's input from its output where that is active; None with too few equations."""
    weight, bias = network.weights[layer], network.biases[layer]
    assert bias is not None
    # Outputs of 0 come with errors, of which negative ones show the size; with all other signals
    # known, the errors may all be positive.
    least = max(-3 * float(output.value.min()), 3 * output.zeros)
    active = output.value > least
    if int(active.sum()) < EQUATIONS * factors.rank:
        return None
    whole = torch.cat([weight, bias[:, None]], dim=1)[active]
    # That the input's last entry is 1 is an equation too.
    system = torch.cat([whole @ factors.rows.T, factors.rows[None, :, -1]])
    right = torch.cat([output.value[active], output.value.new_ones(1)])
    fit = torch.linalg.lstsq(system, right[:, None], driver="gelsd")
    coordinates = fit.solution[:, 0]
    off = (system @ coordinates - right).norm() / max(len(right) - factors.rank, 1) ** 0.5
    sizes = fit.singular_values.clamp_min(1e-300)
    least, largest = float(sizes.min()), float(torch.linalg.matrix_norm(whole, 2))
    own = float((coordinates * spread).norm()) * (1 + largest / least)
    bound = DEVIATIONS * (float(off) * float(sizes.pow(-2).sum().sqrt()) + own)
    return Solution((coordinates @ factors.rows)[:-1], bound + output.bound / least)
