"""Samples of a network with one hidden layer from their signals, all of them or most."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fedleak.attacks.exact_batches.descent import DEVIATIONS, Descended, signed
from fedleak.attacks.exact_batches.remainder import Remainder
from fedleak.attacks.exact_batches.two_state import Signals, free_residuals, nearer_states

# Rounds of reweighted least squares over the rows, and by how much each narrows the weights.
ROUNDS = 60
NARROWER = 0.8
LAST_WIDTH = 1e-9
# Rows fit beyond as many as there are unknowns, at least; and a row fits if its residual is at most
# this many times that of the last of these.
SPARE = 16
FITTING = 10.0
# A row of this leverage fits whatever it is, and says nothing of whether its unknown is right.
LEVERAGE = 0.99
# Relative size of singular values that count.
SINGULAR = 1e-10
# A residual below 0 by this share of the largest is no probability.
NEGATIVE = 1e-2
# Rounding error of the client's logits, in units of unit roundoff of the sums' terms.
ROUNDING = 3.0
# An input is divided by its last entry, whose error counts like that of the others.
DIVIDED = 2.0


class _Eliminated(NamedTuple):
    """Inputs up to combinations of the inputs of missing samples.

    Args:
        base: inputs that agree with the known signals, ``(samples, in + 1)``.
        base_coordinates: the same in the rows' basis, ``(samples, rank)``.
        free: orthonormal basis of the missing samples' inputs, ``(missing, in + 1)``.
        free_coordinates: the same in the rows' basis, ``(missing, rank)``.
    """

    base: Tensor
    base_coordinates: Tensor
    free: Tensor
    free_coordinates: Tensor


class _Shares(NamedTuple):
    """What a sample's input has of the basis of the missing ones.

    Args:
        shares: ``(samples, missing)``.
        spreads: standard deviation of their error's norm, ``(samples,)``; infinite where they are
            not determined.
        passed_on: by how much an error of the input grows, ``(samples,)``.
    """

    shares: Tensor
    spreads: Tensor
    passed_on: Tensor


def close(remainder: Remainder, signals: Signals) -> Descended:
    """Samples from the signals of all that are left, or of most of them.

    The gradient is ``C Q`` with the columns' basis C, and the signals of all R samples are ``C p``,
    so that ``Q = P^T H`` with the inputs H. If all p are known, this gives H. If some are missing,
    the coordinates that have a pairing of 0 with all known p give the span of the missing samples'
    inputs, and a known sample's input is determined up to a combination of these. Two sets of
    equations give its shares:

    - The signal tells which units are active and, up to a factor, the softmax of the other classes
      than the label. With the active units the logits are linear in the input: of C classes, C - 2
      linear equations for each sample (:func:`_by_softmax`).
    - In rows of the gradient in which no missing sample is active, the known ones leave nothing
      (:func:`_by_rows`). Other rows may fit as well, since a unit's entries in all signals are
      linear in as many numbers as there are classes: then the shares are wrong, and their bounds.

    Args:
        remainder: what is left of the gradient of a network with one hidden layer, with a bias.
        signals: distinct signals of the hidden layer, in the basis of the factors' columns.

    Returns:
        What each of the two determines, with bounds: up to two candidates for a sample, which the
        certificate decides on.
    """
    factors = remainder.factors(0)
    known = _of_probabilities(signals)
    known = known[known.errors.argsort()[: factors.rank]]
    coordinates, residuals = signed(known)
    whole = coordinates @ factors.columns.T
    if int(torch.linalg.matrix_rank(coordinates, rtol=SINGULAR)) < max(len(known), 1):
        return _none(remainder)
    left = _eliminated(factors.sizes[:, None] * factors.rows, coordinates)
    fit = _fit(remainder, known, whole, residuals)
    if len(left.free) == 0:
        nothing = whole.new_zeros(len(known))
        options = [_Shares(whole[:, :0], nothing, nothing)]
    else:
        options = [_by_rows(remainder.matrix(0), whole * fit.active, left)]
    if 0 < len(left.free) <= remainder.network.classes - 2:
        options.append(_by_softmax(remainder, left, residuals, fit))
    found = []
    for option in options:
        inputs, bounds = _with_bounds(remainder, left, option, fit)
        factor = inputs[:, -1:]
        # What may be as wrong as it is large is not determined.
        good = (factor[:, 0] > 0) & (bounds < inputs.norm(dim=1))
        found.append(
            Descended(
                (inputs[:, :-1] / factor)[good], residuals.argmin(dim=1)[good],
                (whole * factor)[good], (DIVIDED * bounds / factor[:, 0])[good],
            )
        )  # fmt: skip
    return Descended(*map(torch.cat, zip(*found, strict=True)))


def _none(remainder: Remainder) -> Descended:
    found = remainder.found.inputs
    signals = remainder.gradients[0].T[:0]
    return Descended(found[:0], remainder.found.labels[:0], signals, found[:0, 0])


def _of_probabilities(signals: Signals) -> Signals:
    """Those whose residuals are positive but at one class, as softmax minus one-hot label is."""
    _, residuals = signed(signals)
    largest = residuals.abs().amax(dim=1)
    negative = residuals < -NEGATIVE * largest[:, None]
    return signals[(negative.sum(dim=1) == 1).nonzero().flatten()]


def _eliminated(inner: Tensor, coordinates: Tensor) -> _Eliminated:
    """Known and missing inputs, by pairings with the signals.

    Args:
        inner: Q, ``(rank, in + 1)``.
        coordinates: p of the known signals, ``(samples, rank)``.
    """
    base = torch.linalg.pinv(coordinates, rtol=SINGULAR).T
    unpaired = torch.linalg.svd(coordinates, full_matrices=True).Vh[len(coordinates) :]
    rows = unpaired @ inner
    basis, factor = torch.linalg.qr(rows.T)
    change = torch.linalg.solve_triangular(factor.T, unpaired, upper=False)
    return _Eliminated(base @ inner, base, basis.T, change)


class _Fit(NamedTuple):
    """Errors of signals, from the residuals of the regression that gave them.

    Args:
        active: 1 where a unit is active, else 0, ``(samples, units)``.
        coordinates: standard deviation of an entry of p in its worst direction, ``(samples,)``.
        residuals: standard deviation of each class's residual, ``(samples, classes)``.
    """

    active: Tensor
    coordinates: Tensor
    residuals: Tensor


def _fit(remainder: Remainder, signals: Signals, whole: Tensor, residuals: Tensor) -> _Fit:
    """The regression's errors.

    Args:
        remainder: what is left of the gradient.
        signals: the signals.
        whole: the same as vectors over the units, ``(samples, units)``.
        residuals: with the signs of ``whole``, ``(samples, classes)``.
    """
    head, columns = remainder.network.weights[-1], remainder.factors(0).columns
    active, _ = nearer_states(whole, residuals @ head)
    _, basis = free_residuals(len(head), residuals.argmin(dim=1), head.dtype)
    moving = (basis.mT @ head) * active[:, None, :]  # (samples, free, units)
    along = moving @ columns
    own = moving @ moving.mT - along @ along.mT
    inverse = torch.linalg.pinv(own, hermitian=True)
    units = whole.shape[1] - columns.shape[1] - basis.shape[2]
    deviations = signals.errors * whole.norm(dim=1) / max(units, 1) ** 0.5
    wider = (along.mT @ inverse @ along).diagonal(dim1=1, dim2=2).sum(dim=1)
    variances = (basis @ inverse @ basis.mT).diagonal(dim1=1, dim2=2).clamp_min(0)
    return _Fit(active, deviations * (1 + wider).sqrt(), deviations[:, None] * variances.sqrt())


def _with_bounds(
    remainder: Remainder, left: _Eliminated, option: _Shares, fit: _Fit
) -> tuple[Tensor, Tensor]:
    """Inputs, not divided by their last entry, and bounds on the norms of their errors.

    An input's error is a combination of the gradient's noise and of the errors of all known
    signals, by its coordinates; its shares have errors of their own.
    """
    factors = remainder.factors(0)
    inputs = left.base + option.shares @ left.free
    size = (left.base_coordinates + option.shares @ left.free_coordinates).norm(dim=1)
    noise = remainder.noise(factors, 0) * math.sqrt(factors.rows.shape[1])
    others = (fit.coordinates * inputs.norm(dim=1)).norm()
    spreads = size * torch.hypot(others, torch.as_tensor(noise).to(others))
    bounds = DEVIATIONS * (spreads * (1 + option.passed_on) + option.spreads)
    return inputs, bounds.nan_to_num(nan=torch.inf, posinf=torch.inf)


def _by_softmax(remainder: Remainder, left: _Eliminated, residuals: Tensor, fit: _Fit) -> _Shares:
    """Shares by the logits.

    With the units' states the logits are ``J y`` for an input y with a last entry of 1, and those
    of the classes other than the label are ``log r + t`` with an unknown t. Both sides times the
    last entry are linear in y; an equation counts as exactly as its class's r is known.
    """
    network = remainder.network
    weight = torch.cat([network.weights[0], _column(network.biases[0], network.weights[0])], dim=1)
    squares = weight.square()
    head = network.weights[1]
    bias = _column(network.biases[1], head)[:, 0]
    shares = left.base.new_zeros(len(left.base), len(left.free))
    spreads, passed_on = left.base.new_full((2, len(left.base)), torch.inf)
    for at, residual in enumerate(residuals):
        others = residual > 0
        logits = (head[others] * fit.active[at]) @ weight
        logits[:, -1] += bias[others] - residual[others].log()
        # The mean takes t out; with their probabilities as weights, errors are those of r.
        probabilities = residual[others, None] / residual[others].sum()
        equations = residual[others, None] * (logits - (probabilities * logits).sum(dim=0))
        system = equations @ left.free.T
        if int(torch.linalg.matrix_rank(system, rtol=SINGULAR)) < len(left.free):
            continue
        inverse = torch.linalg.pinv(system, rtol=SINGULAR)
        shares[at] = -inverse @ (equations @ left.base[at])
        inputs = left.base[at] + shares[at] @ left.free
        # The client's logits are rounded, sums of rounded outputs of the hidden layer.
        outputs = (squares @ inputs.square() + (weight @ inputs).square()) * fit.active[at]
        rounding = ROUNDING * network.unit * (head[others].square() @ outputs).sqrt()
        own = torch.hypot(fit.residuals[at, others] * inputs[-1], residual[others] * rounding)
        spreads[at] = (inverse * own).norm()
        passed_on[at] = torch.linalg.matrix_norm(inverse @ equations, 2)
    return _Shares(shares, spreads, passed_on)


def _column(bias: Tensor | None, weight: Tensor) -> Tensor:
    return weight.new_zeros(len(weight), 1) if bias is None else bias[:, None]


def _by_rows(matrix: Tensor, signals: Tensor, left: _Eliminated) -> _Shares:
    """Shares by the rows in which no missing sample is active.

    In the basis of the missing samples, the rest of such a row is the known signals times the
    unknown shares. Entries of 0 have to be exactly 0: else rounding would determine shares.
    """
    rest = (matrix - signals.T @ left.base) @ left.free.T
    shares, spreads = robust_least_squares(rest, signals)
    return _Shares(shares, spreads, torch.zeros_like(spreads))


def robust_least_squares(matrix: Tensor, signals: Tensor) -> tuple[Tensor, Tensor]:
    """A factor of a matrix from the other one, by least squares over the rows that fit.

    The matrix is ``signals^T factor`` up to rounding in some of the rows. The sum of the logarithms
    of the rows' residual norms is minimised by reweighted least squares, then the sum of squares
    over the rows that fit.

    Args:
        matrix: ``(rows, columns)``.
        signals: ``(samples, rows)``.

    Returns:
        The factor ``(samples, columns)``, and the standard deviation of the norm of each row's
        error, from the residuals; infinite where the rows that fit do not determine it.
    """
    used = signals.abs().amax(dim=0) > 0
    factor = _least_squares(matrix, signals, used.to(matrix))
    rest = (matrix - signals.T @ factor).norm(dim=1)
    # So many rows fit by the choice of the unknowns alone.
    needed = len(signals) + SPARE
    if int(used.sum()) < needed:
        return factor, rest.new_full((len(signals),), torch.inf)
    width = float(rest[used].median())
    for _ in range(ROUNDS):
        smooth = rest.clamp_min(width + torch.finfo(matrix.dtype).tiny)
        factor = _least_squares(matrix, signals, torch.where(used, 1 / smooth, 0.0))
        rest = (matrix - signals.T @ factor).norm(dim=1)
        width = max(width * NARROWER, LAST_WIDTH * float(rest[used].max()))
    fits = used & (rest <= FITTING * rest[used].sort().values[needed - 1])
    while True:
        inverse = torch.linalg.pinv(signals.T[fits], rtol=SINGULAR)
        alone = (signals.T[fits] * inverse.T).sum(dim=1) > LEVERAGE
        if not bool(alone.any()):
            break
        fits[fits.nonzero().flatten()[alone]] = False
    factor = inverse @ matrix[fits]
    rest = (matrix - signals.T @ factor)[fits]
    noise = float(rest.norm()) / max(int(fits.sum()) - len(signals), 1) ** 0.5
    spreads = noise * inverse.norm(dim=1)
    resolved = ((inverse @ signals.T[fits]).diagonal() - 1).abs() < 1e-6
    return factor, torch.where(resolved, spreads, torch.inf)


def _least_squares(matrix: Tensor, signals: Tensor, weights: Tensor) -> Tensor:
    root = weights[:, None]
    found: Tensor = torch.linalg.lstsq(signals.T * root, matrix * root, driver="gelsd").solution
    return found
