"""Ceilings on what an attack can reconstruct from a noised update.

Two kinds. Without a prior on the sample, the noise bounds the mean squared error of every unbiased
estimate from below (Riess et al. 2024, arXiv 2402.12861, for a linear read-out; the information
inequality of Cramer and Rao in general). With any prior, differential privacy bounds the
probability of success by that of a guess without the update (Hayes et al. 2023, arXiv 2302.07225).
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from fedleak.errors import require
from fedleak.privacy.accountants import LEAST_MULTIPLIER, privacy_losses, total_multiplier
from fedleak.privacy.mechanisms import Mechanism, check_count


def linear_mse(
    *,
    deviation: float,
    output_norm: float,
    input_norm: float,
    entries: int,
    output_known: bool = False,
) -> float:
    """Least mean squared error of an unbiased estimate of a linear layer's input.

    A layer ``W h + b`` with n inputs sends, for one sample, ``Y = d h^T + s E`` and
    ``y = d + s e``, with d the gradient of its output after any clipping, and E and e independent
    standard normal. Riess et al. (arXiv 2402.12861) take a read-out whose d is known:
    ``h + s/|d| N(0, I)`` is all that Y says of h, with the mean squared error::

        MSE = s^2 / |d|^2

    If d is read from the bias, it is estimated as well. The Fisher information of (h, d) is, in
    units of ``s^-2``, ``|d|^2 I`` for h, ``(1 + |h|^2) I`` for d and ``h d^T`` between them, so
    that of h with d unknown is::

        |d|^2 I - h d^T d h^T / (1 + |h|^2) = |d|^2 (I - h h^T / (1 + |h|^2))

    whose inverse is ``(I + h h^T) / |d|^2`` (Sherman and Morrison). Its trace over n bounds the
    mean squared error of an entry from below (Cramer and Rao)::

        MSE = s^2 / |d|^2 * (1 + |h|^2 / n)

    Without the bias the factor would be infinite, as ``d h^T`` determines h up to a factor only. If
    the update is this layer's gradient alone, clipped to the norm C, ``|d|^2 = C^2 / (1 + |h|^2)``.

    The bound holds for unbiased estimates from this layer's gradient alone; least squares come
    within 0.5 dB of it for large ``|d| / s``. The weights, which tell d for each h, and the other
    layers' gradients tell more: :func:`jacobian_mse` counts them. A range of values is a prior.

    Args:
        deviation: standard deviation s of the noise of each entry, at least 0.
        output_norm: ``|d|``, the norm of the gradient of the bias, after clipping, positive.
        input_norm: ``|h|``, the norm of the input, at least 0.
        entries: number n of entries of the input, at least 1.
        output_known: whether d is known, as in the read-out of Riess et al.

    Returns:
        The mean squared error of an entry, in the input's unit squared.

    Raises:
        BadInput: if a value is out of its range.
    """
    _check_deviation(deviation)
    require(
        0 < output_norm < math.inf,
        f"Expected `output_norm`, the norm of the bias' gradient, positive, got {output_norm}.",
    )
    require(0 <= input_norm < math.inf, f"Expected `input_norm` at least 0, got {input_norm}.")
    check_count("a ceiling", "entries", entries)
    known = (deviation / output_norm) ** 2
    return known if output_known else known * (1 + input_norm**2 / entries)


def sample_mse(
    *,
    deviation: float,
    output_norm: float,
    sample: NDArray[np.floating],
    scale: NDArray[np.floating] | float = 1.0,
) -> float:
    """:func:`linear_mse` of one sample, whose entries are scaled before they are compared.

    The covariance of the estimate is ``s^2 (I + h h^T) / |d|^2``, of which entry i has
    ``s^2 (1 + h_i^2) / |d|^2``; by a scale a_i it is ``a_i^2`` times as large.

    Args:
        deviation: see :func:`linear_mse`.
        output_norm: see :func:`linear_mse`.
        sample: the input h of the layer, ``(n,)``.
        scale: factor a of each entry, ``(n,)``, such as the standard deviation of its channel, by
            which normalised values become pixels.

    Returns:
        The mean squared error of an entry, in the scaled unit squared.

    Raises:
        BadInput: if a value is out of its range.
    """
    norm_of_sample = float(np.linalg.norm(sample))
    # Checks the values as well.
    known = linear_mse(
        deviation=deviation, output_norm=output_norm, input_norm=norm_of_sample,
        entries=len(sample), output_known=True,
    )  # fmt: skip
    weights = np.square(np.asarray(scale, dtype=np.float64))
    return float(known * np.mean(weights * (1 + np.square(sample, dtype=np.float64))))


def jacobian_mse(jacobian: NDArray[np.floating], deviation: float) -> float:
    """Least mean squared error of an unbiased estimate from a whole noised update.

    An update ``g(x) + s N(0, I)`` has the Fisher information ``J^T J / s^2`` of x, with J the
    Jacobian of g, clipping included; ``s^2 trace((J^T J)^-1) / n`` bounds the mean squared error of
    an entry from below (Cramer and Rao). The attacker knows the model and has no prior.

    Args:
        jacobian: J at the true sample, ``(entries of the update, n)``.
        deviation: standard deviation s of the noise of each entry, at least 0.

    Returns:
        The mean squared error of an entry; infinite if the update does not determine the sample.

    Raises:
        BadInput: if the Jacobian is no matrix or the deviation is negative.
    """
    _check_deviation(deviation)
    values = np.asarray(jacobian, dtype=np.float64)
    require(
        values.ndim == 2 and values.size > 0 and bool(np.isfinite(values).all()),
        f"Expected a Jacobian as a matrix of finite numbers, got the shape {values.shape}.",
    )
    sizes = np.linalg.svd(values, compute_uv=False)
    n = values.shape[1]
    if len(sizes) < n or sizes[-1] <= sizes[0] * np.finfo(np.float64).eps * max(values.shape):
        return math.inf
    return float(deviation**2 * (sizes**-2.0).sum() / n)


def mse_to_psnr(mse: float, *, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio, in dB, of a mean squared error.

    Args:
        mse: mean squared error, at least 0.
        data_range: largest minus smallest valid value, positive.

    Raises:
        BadInput: if a value is out of its range.
    """
    require(mse >= 0, f"Expected `mse` at least 0, got {mse}.")
    require(data_range > 0, f"Expected `data_range` positive, got {data_range}.")
    if mse in (0, math.inf):
        return -math.inf if mse else math.inf
    return 10 * math.log10(data_range**2 / mse)


def reconstruction_probability(mechanism: Mechanism, *, guess: float, rounds: int = 1) -> float:
    """Largest probability with which any attacker reconstructs a unit's data.

    Hayes et al. (arXiv 2302.07225), theorem 2: an attacker who knows all other data, sees all
    releases and succeeds with probability kappa without them, by the best guess of its prior,
    succeeds with probability ``sup{P(E): Q(E) <= kappa}`` at most, with P and Q the dominating pair
    of distributions of the releases with the unit and without it. Without sampling, that is
    ``Phi(Phi^-1(kappa) + 1 / z)``, with z the noise multiplier of all releases together. With
    Poisson sampling, it is at most ``e^t kappa + delta(t)`` for each t, with ``delta(t)`` that of
    the privacy loss distribution; the least of these over t from 0 on is tight for small kappa.
    Other sampling is not counted.

    The comparison is with the unit removed, whatever the mechanism's adjacency: the guess makes up
    for what replaces it.

    Args:
        mechanism: a Gaussian mechanism.
        guess: kappa, the probability that a guess without the update succeeds, from 0 to 1; what
            counts as success, such as an error below a threshold, is that of the result too.
        rounds: number of rounds, at least 1.

    Returns:
        The probability, from ``guess`` to 1; 1 if no epsilon holds.

    Raises:
        BadInput: if a value is out of its range, or the mechanism's noise is not Gaussian.
        MissingExtra: if there is Poisson sampling and dp-accounting is not installed.
    """
    require(0 <= guess <= 1, f"Expected `guess`, a probability, from 0 to 1, got {guess}.")
    check_count("a ceiling", "rounds", rounds)
    require(
        mechanism.kind == "gaussian",
        f"Expected a Gaussian mechanism for this ceiling, got {mechanism.kind} noise.",
    )
    if mechanism.infinite:
        return 1.0
    if guess in (0, 1):
        return float(guess)
    removed = replace(mechanism, adjacency="remove")
    releases = [(removed, rounds)]
    shift = 1 / total_multiplier(releases)
    # The survival function keeps its precision near 1.
    whole = float(norm.sf(norm.isf(guess) - shift))
    sampled = removed.sampling == "poisson" and removed.sampling_rate < 1
    if not sampled or removed.noise_multiplier() < LEAST_MULTIPLIER:
        return whole
    losses = privacy_losses(releases)
    # Every t gives a bound, which is convex in e^t.
    least = minimize_scalar(
        lambda t: math.exp(t) * guess + float(losses.get_delta(t)),
        bounds=(0, -math.log(guess)), method="bounded", options={"xatol": 1e-4},
    )  # fmt: skip
    return max(guess, min(whole, float(least.fun)))


def _check_deviation(deviation: float) -> None:
    require(
        0 <= deviation < math.inf, f"Expected `deviation` of the noise at least 0, got {deviation}."
    )
