"""All remaining samples at once, from all remaining signals of a network with one hidden layer."""

import torch
from torch import Tensor

# Rounds of reweighted least squares over the rows.
ROUNDS = 12
# A row fits if its residual is at most this many times the median of those that fit best.
FITTING = 10.0
# Share of the rows by whose residuals the others are judged.
BEST = 0.5


def closed_inputs(matrix: Tensor, signals: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of a layer from the signals of all samples, by row-robust least squares.

    The matrix is ``signals^T inputs`` up to rounding in every row but a few, such as rows of a unit
    whose mask the client's rounding has flipped, or of a sample whose signal is missing. The sum of
    the rows' residual norms is minimised, then the sum of squares over the rows that fit.

    Args:
        matrix: what is left of the layer's gradient, ``(out, in + 1)``.
        signals: ``(samples, out)``.

    Returns:
        The inputs ``(samples, in + 1)``, and a bound on the norm of each one's error: six standard
        deviations of the rows' residuals times that sample's row of the pseudo-inverse. It is
        infinite where the rows that fit do not determine a sample.
    """
    weights = torch.ones(len(matrix), dtype=matrix.dtype)
    used = signals.abs().amax(dim=0) > 0
    weights[~used] = 0
    rest = matrix.norm(dim=1)
    inputs = matrix[:0]
    for _ in range(ROUNDS):
        inputs = _least_squares(matrix, signals, weights)
        rest = (matrix - signals.T @ inputs).norm(dim=1)
        least = float(rest[used].quantile(BEST)) * 1e-3 + torch.finfo(matrix.dtype).tiny
        weights = torch.where(used, 1 / rest.clamp_min(least).sqrt(), 0.0)
    middle = rest[used].quantile(BEST / 2)
    fits = used & (rest <= FITTING * middle)
    inputs = _least_squares(matrix, signals, fits.to(matrix))
    rest = (matrix - signals.T @ inputs)[fits]
    noise = float(rest.norm()) / max(int(fits.sum()) - len(signals), 1) ** 0.5
    inverse = torch.linalg.pinv(signals.T[fits], rtol=1e-10)
    rank = int(torch.linalg.matrix_rank(signals.T[fits], rtol=1e-10))
    bounds = 6 * noise * inverse.norm(dim=1)
    if rank < len(signals):
        resolved = (inverse @ signals.T[fits]).diagonal()
        bounds = torch.where((resolved - 1).abs() < 1e-6, bounds, torch.inf)
    return inputs, bounds


def _least_squares(matrix: Tensor, signals: Tensor, weights: Tensor) -> Tensor:
    root = weights[:, None]
    found: Tensor = torch.linalg.lstsq(signals.T * root, matrix * root, driver="gelsd").solution
    return found
