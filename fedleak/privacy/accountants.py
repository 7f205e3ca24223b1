"""The epsilon of several releases together, by Google's dp-accounting."""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedleak.errors import BadInput, require
from fedleak.extras import extras_explained
from fedleak.privacy.mechanisms import Mechanism, check_count, check_delta

if TYPE_CHECKING:
    from dp_accounting import DpEvent
    from dp_accounting.pld import PLDAccountant

# Discretisation of privacy losses at noise multipliers of 1 and above, dp-accounting's own value.
INTERVAL = 1e-4
# Below this noise multiplier privacy losses are too large for dp-accounting's arithmetic.
LEAST_MULTIPLIER = 1e-3
# Below this one, so is epsilon for a float.
TINY = 1e-150

Releases = list[tuple[Mechanism, int]]


class Composed(NamedTuple):
    """What several releases are worth together.

    Args:
        epsilon: the epsilon; infinite if none holds.
        accountant: how it was computed.
    """

    epsilon: float
    accountant: str


def compose(releases: Mapping[Mechanism, int], delta: float) -> Composed:
    """The epsilon of the releases of several mechanisms, which may be chosen one after another.

    Without sampling, Gaussian mechanisms compose to one whose noise multiplier z is given by
    ``z^-2 = sum of z_i^-2`` (Dong et al. 2022, arXiv 1905.02383, corollary 3.3), and its epsilon is
    exact (Balle and Wang 2018, arXiv 1805.06530, theorem 8). With Poisson sampling, and with
    Laplace noise, epsilon comes from privacy loss distributions (PLD), an upper bound that is tight
    up to their discretisation; with sets of a fixed size and ``replace``, from Renyi's divergences
    (RDP; Wang et al. 2019, arXiv 1808.00087, theorem 27). Where a bound that counts no sampling is
    lower, it is taken. Other sampling is not counted: every unit may contribute to every release.

    Args:
        releases: mechanism -> number of rounds, at least 1; all of one unit and one adjacency.
        delta: the delta at which epsilon is computed, in (0, 1).

    Returns:
        The epsilon and how it was computed.

    Raises:
        BadInput: if delta is out of its range, or the mechanisms differ in unit or adjacency.
        MissingExtra: if dp-accounting is not installed.
    """
    check_delta("a ledger", delta)
    require(bool(releases), "Expected at least one release to compose, got none.")
    for number in releases.values():
        check_count("a ledger", "rounds", number)
    for what in ("unit", "adjacency"):
        kinds = sorted({getattr(mechanism, what) for mechanism in releases})
        require(
            len(kinds) == 1,
            f"Expected releases of one {what} to compose, got {' and '.join(kinds)}.",
        )
    return _compose(frozenset(releases.items()), delta)


@lru_cache(maxsize=4096)
def _compose(releases: frozenset[tuple[Mechanism, int]], delta: float) -> Composed:
    """:func:`compose`; a run has the same releases for many clients."""
    # A fixed order, as sums of floats depend on it.
    ordered = sorted(releases, key=repr)
    if any(mechanism.infinite for mechanism, _ in ordered):
        return Composed(math.inf, "none")
    found = [_without_sampling(ordered, delta)]
    if not found[0].epsilon or math.isinf(found[0].epsilon):
        return found[0]
    gaussian = not _has_laplace(ordered)
    samplings = {mechanism.sampling for mechanism, _ in ordered if _is_sampled(mechanism)}
    if gaussian and "fixed" in samplings and ordered[0][0].adjacency == "replace":
        found.append(Composed(_renyi(ordered, delta), "RDP"))
    if (not gaussian or "poisson" in samplings) and _has_losses(ordered):
        found.append(Composed(float(privacy_losses(ordered).get_epsilon(delta)), "PLD"))
    return min(found)


def _without_sampling(releases: Releases, delta: float) -> Composed:
    """The epsilon if every unit contributes to every release: an upper bound if not so."""
    laplace = [(m, rounds) for m, rounds in releases if m.kind == "laplace"]
    rest = [(m, rounds) for m, rounds in releases if m.kind == "gaussian"]
    pure = sum(rounds * m.releases * _inverse(m) for m, rounds in laplace)
    if not rest:
        return Composed(pure, "sum of pure epsilons")
    multiplier = total_multiplier(rest)
    exact = math.inf if multiplier < TINY else _gaussian_epsilon(multiplier, delta)
    sampled = any(_is_sampled(mechanism) for mechanism, _ in releases)
    name = "sum of Laplace's and Gaussian's" if laplace else "exact Gaussian"
    return Composed(pure + exact, f"{name}, sampling not counted" if sampled else name)


def _gaussian_epsilon(multiplier: float, delta: float) -> float:
    with extras_explained():
        from dp_accounting import get_epsilon_gaussian

    try:
        # A probability that is 0 in floats has the logarithm -inf.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return float(get_epsilon_gaussian(multiplier, delta))
    except (ArithmeticError, ValueError) as error:
        raise BadInput(
            "Expected noise and a delta of which epsilon can be computed in floating point, got a "
            f"noise multiplier of {multiplier:.3g} over all rounds and delta {delta:g}."
        ) from error


def gaussian_multiplier(epsilon: float, delta: float) -> float:
    """The noise multiplier of a Gaussian mechanism of which one release has an epsilon.

    Args:
        epsilon: the epsilon, above 0.
        delta: the delta, in (0, 1).

    Raises:
        BadInput: if it cannot be computed in floating point.
        MissingExtra: if dp-accounting is not installed.
    """
    with extras_explained():
        from dp_accounting import get_sigma_gaussian

    try:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found = float(get_sigma_gaussian(epsilon, delta))
    except (ArithmeticError, ValueError) as error:
        raise BadInput(
            "Expected `epsilon` and `delta` whose noise can be computed in floating point, got "
            f"{epsilon:g} and {delta:g}."
        ) from error
    return found


def _inverse(mechanism: Mechanism) -> float:
    """Sensitivity over the noise's scale; infinite where the multiplier is 0 in floats."""
    multiplier = mechanism.noise_multiplier()
    return 1 / multiplier if multiplier else math.inf


def total_multiplier(releases: Releases) -> float:
    """Noise multiplier of all Gaussian releases together, without sampling.

    Args:
        releases: mechanism and number of rounds; every mechanism has an epsilon.
    """
    total = math.hypot(
        *(
            math.sqrt(rounds * mechanism.releases) * _inverse(mechanism)
            for mechanism, rounds in releases
        )
    )
    return 1 / total if total else math.inf


def privacy_losses(releases: Releases) -> "PLDAccountant":
    """dp-accounting's distribution of the privacy loss of all releases.

    Args:
        releases: mechanism and number of rounds; every mechanism has an epsilon.
    """
    with extras_explained():
        from dp_accounting import NeighboringRelation, PoissonSampledDpEvent
        from dp_accounting.pld import PLDAccountant

    # With `replace`, dp-accounting's Gaussian takes the noise multiplier over the bound and doubles
    # it; its Laplace has no such mode, and without sampling the sensitivity alone matters.
    replace = releases[0][0].adjacency == "replace" and not _has_laplace(releases)
    relation = NeighboringRelation.REPLACE_ONE if replace else NeighboringRelation.ADD_OR_REMOVE_ONE
    found = PLDAccountant(relation, value_discretization_interval=_interval(releases))
    for mechanism, rounds in releases:
        event = _event(mechanism, mechanism.noise_multiplier(of_bound=replace))
        counted = replace or mechanism.adjacency == "remove"
        if counted and mechanism.kind == "gaussian" and mechanism.sampling == "poisson":
            event = PoissonSampledDpEvent(mechanism.sampling_rate, event)
        found.compose(event, rounds * mechanism.releases)
    return found


def _event(mechanism: Mechanism, multiplier: float) -> "DpEvent":
    from dp_accounting import GaussianDpEvent, LaplaceDpEvent

    return (GaussianDpEvent if mechanism.kind == "gaussian" else LaplaceDpEvent)(multiplier)


def _renyi(releases: Releases, delta: float) -> float:
    with extras_explained():
        from dp_accounting import NeighboringRelation, SampledWithoutReplacementDpEvent
        from dp_accounting.rdp import RdpAccountant

    found = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    for mechanism, rounds in releases:
        event = _event(mechanism, mechanism.noise_multiplier())
        if mechanism.sampling == "fixed":
            # The event takes two sizes; only their ratio matters.
            event = SampledWithoutReplacementDpEvent(1, mechanism.sampling_rate, event)
        found.compose(event, rounds * mechanism.releases)
    return float(found.get_epsilon(delta))


def _interval(releases: Releases) -> float:
    """Discretisation interval: at most some 2e5 losses in a release.

    A Gaussian's losses span about ``20 / z + z^-2`` and a Laplace's ``2 / z``.
    """
    return max(
        INTERVAL,
        *(
            INTERVAL * (1 / m.noise_multiplier()) ** 2
            if m.kind == "gaussian"
            else INTERVAL / (10 * m.noise_multiplier())
            for m, _ in releases
        ),
    )


def _has_losses(releases: Releases) -> bool:
    """Whether no privacy loss is too large for dp-accounting."""
    return min(m.noise_multiplier() for m, _ in releases) >= LEAST_MULTIPLIER


def _has_laplace(releases: Releases) -> bool:
    return any(mechanism.kind == "laplace" for mechanism, _ in releases)


def _is_sampled(mechanism: Mechanism) -> bool:
    return mechanism.sampling_rate < 1
