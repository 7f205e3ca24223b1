"""Epsilons against dp-accounting's and Opacus's own figures, and against their definition."""

import math
from dataclasses import replace

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.stats import norm

from fedleak.errors import BadInput
from fedleak.privacy import compose, dp_sgd, fixed_clipping, local_dp_mod, noise
from fedleak.privacy.mechanisms import Mechanism

DELTA = 1e-5
REMOVE = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
REPLACE = dp_accounting.NeighboringRelation.REPLACE_ONE
SAMPLED = dp_sgd(noise_multiplier=2.0, sampling_rate=0.05, steps=100)


def accounted(
    accountant: dp_accounting.PrivacyAccountant, event: dp_accounting.DpEvent, count: int
) -> float:
    """Epsilon by dp-accounting, with its own settings."""
    return float(accountant.compose(event, count).get_epsilon(DELTA))


def opacus(accountant: PRVAccountant | RDPAccountant, steps: int, **settings: float) -> float:
    """Epsilon of DP-SGD of noise multiplier 2 and sampling rate 0.05 by Opacus."""
    accountant.history = [(2.0, 0.05, steps)]
    return float(accountant.get_epsilon(DELTA, **settings))


def gaussian(multiplier: float) -> dp_accounting.GaussianDpEvent:
    return dp_accounting.GaussianDpEvent(multiplier)


SETTINGS = {
    "Gaussian": (
        {noise(sigma=4.0, max_norm=0.5): 10},
        lambda: accounted(pld.PLDAccountant(REMOVE), gaussian(4.0), 10),
        "exact Gaussian",
    ),
    "Gaussian, replace": (
        {noise(sigma=4.0, max_norm=0.5): 10},
        lambda: accounted(pld.PLDAccountant(REPLACE), gaussian(8.0), 10),
        "exact Gaussian",
    ),
    "Poisson": (
        {SAMPLED: 10},
        lambda: accounted(
            pld.PLDAccountant(REMOVE),
            dp_accounting.PoissonSampledDpEvent(0.05, gaussian(2.0)),
            1000,
        ),
        "PLD",
    ),
    "Poisson by Opacus": (
        {SAMPLED: 1},
        lambda: opacus(PRVAccountant(), 100, eps_error=5e-4),
        "PLD",
    ),
    "Poisson, replace": (
        {replace(SAMPLED, adjacency="replace"): 1},
        lambda: accounted(
            pld.PLDAccountant(REPLACE),
            dp_accounting.PoissonSampledDpEvent(0.05, gaussian(2.0)),
            100,
        ),
        "PLD",
    ),
    "fixed size, replace": (
        {
            fixed_clipping(
                noise_multiplier=4.0, clipping_norm=0.3, clients=5, population=100,
                adjacency="replace",
            ): 50
        },
        lambda: accounted(
            rdp.RdpAccountant(neighboring_relation=REPLACE),
            dp_accounting.SampledWithoutReplacementDpEvent(100, 5, gaussian(2.0)),
            50,
        ),
        "RDP",
    ),
    "Laplace": (
        {noise(sigma=30.0, max_norm=1.0, distribution="laplace", entries=4): 20},
        lambda: accounted(
            pld.PLDAccountant(REMOVE), dp_accounting.LaplaceDpEvent(30 / 2**0.5 / 4), 20
        ),
        "PLD",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_epsilon_is_the_libraries_own(name: str) -> None:
    releases, expected, accountant = SETTINGS[name]
    found = compose(releases, DELTA)
    assert found.epsilon == pytest.approx(expected(), abs=1e-3)
    assert found.accountant == accountant


def test_it_is_below_opacus_s_default_accountant() -> None:
    found = compose({SAMPLED: 10}, DELTA).epsilon
    assert 0.8 * opacus(RDPAccountant(), 1000) < found < opacus(RDPAccountant(), 1000)


def hockey_stick(p: np.ndarray, q: np.ndarray, epsilon: float, width: float) -> float:
    """Delta of a pair of densities on a grid: the integral of max(0, p - e^epsilon q)."""
    return float(np.clip(p - math.exp(epsilon) * q, 0, None).sum() * width)


@pytest.mark.parametrize("adjacency", ["remove", "replace"])
@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_epsilon_has_the_delta_of_its_definition(adjacency: str, rate: float) -> None:
    """One release, by numerical integration over the output in the direction of the change."""
    multiplier = 0.5
    mechanism = dp_sgd(noise_multiplier=multiplier, sampling_rate=rate, adjacency=adjacency)
    x, width = np.linspace(-15, 15, 300_001, retstep=True)

    def density(shift: float) -> np.ndarray:
        at = norm.pdf(x, scale=multiplier)
        return (1 - rate) * at + rate * norm.pdf(x, loc=shift, scale=multiplier)

    pair = density(1.0), density(-1.0 if adjacency == "replace" else 0.0)
    epsilon = compose({mechanism: 1}, DELTA).epsilon
    deltas = [hockey_stick(p, q, epsilon, width) for p, q in (pair, pair[::-1])]
    assert max(deltas) == pytest.approx(DELTA, rel=1e-3)


def test_different_gaussians_add_up() -> None:
    small, large = noise(sigma=3.0, max_norm=0.5), noise(sigma=4.0, max_norm=0.5)
    both = compose({small: 2, large: 3}, DELTA).epsilon
    total = (2 / 3**2 + 3 / 4**2) ** -0.5
    assert both == pytest.approx(compose({noise(sigma=total, max_norm=0.5): 1}, DELTA).epsilon)


def test_laplace_and_gaussian_together() -> None:
    laplace = noise(sigma=30.0, max_norm=1.0, distribution="laplace", entries=4)
    other = noise(sigma=8.0, max_norm=1.0)
    parts = [compose({mechanism: 3}, DELTA).epsilon for mechanism in (laplace, other)]
    both = compose({laplace: 3, other: 3}, DELTA)
    assert max(parts) < both.epsilon < sum(parts)
    assert both.accountant == "PLD"
    # A few releases of Laplace noise are worth no more than the sum of their pure epsilons.
    assert compose({laplace: 1}, 1e-12).epsilon <= 4 * math.sqrt(2) / 30 + 1e-9


def test_a_sampled_gaussian_beside_laplace_counts_no_sampling_with_replace() -> None:
    laplace = noise(sigma=3000.0, max_norm=1.0, distribution="laplace", entries=4)
    sampled = Mechanism(
        name="sampled", bound=1.0, standard_deviation=0.6, unit="client", adjacency="replace",
        trust="local", sampling_rate=0.1,
    )  # fmt: skip
    alone = compose({sampled: 1}, DELTA).epsilon
    whole = compose({replace(sampled, sampling_rate=1.0): 1}, DELTA).epsilon
    assert alone < whole / 2
    assert compose({sampled: 1, laplace: 1}, DELTA).epsilon >= whole - 1e-3


def test_sampling_that_has_no_bound_is_not_counted() -> None:
    whole = dp_sgd(noise_multiplier=1.5, steps=7)
    for settings in ({"sampling": "other"}, {"sampling": "fixed"}):
        found = compose({replace(whole, sampling_rate=0.01, **settings): 2}, DELTA)
        assert found.epsilon == compose({whole: 2}, DELTA).epsilon
        assert found.accountant == "exact Gaussian, sampling not counted"


@pytest.mark.parametrize(
    ("sigma", "epsilon"), [(1e-9, 2e18), (1e-160, math.inf), (1e3, 0.0), (1e300, 0.0)]
)
def test_extreme_noise(sigma: float, epsilon: float) -> None:
    mechanism = noise(sigma=sigma, max_norm=1.0, adjacency="remove")
    found = compose({mechanism: 4}, 0.01).epsilon
    assert found == pytest.approx(epsilon, rel=1e-3)
    # Where privacy losses are too large for their distribution, sampling is not counted.
    sampled = compose({replace(mechanism, sampling_rate=0.5): 4}, 0.01).epsilon
    assert sampled == pytest.approx(epsilon, rel=1e-3)


def test_without_a_bound_no_epsilon_holds() -> None:
    found = compose({noise(sigma=1.0): 1, noise(sigma=1.0, max_norm=1.0): 1}, DELTA)
    assert found.epsilon == math.inf
    assert found.accountant == "none"


@pytest.mark.parametrize(
    ("releases", "delta", "message"),
    [
        ({SAMPLED: 1}, 0.0, "`delta` of a ledger to be above 0 and below 1, got 0.0"),
        ({}, DELTA, "at least one release"),
        ({SAMPLED: 0}, DELTA, "`rounds` of a ledger to be a whole number from 1 on, got 0"),
        (
            {SAMPLED: 1, noise(sigma=1.0, max_norm=1.0, adjacency="remove"): 1}, DELTA,
            "of one unit to compose, got client and sample",
        ),
        (
            {SAMPLED: 1, replace(SAMPLED, adjacency="replace"): 1}, DELTA,
            "of one adjacency to compose, got remove and replace",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_added_up_is_refused(releases: dict, delta: float, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        compose(releases, delta)


def test_a_setting_in_use_is_worth_nothing() -> None:
    mechanism = local_dp_mod(clipping_norm=1.0, sensitivity=1e-4, epsilon=10.0, delta=1e-5)
    # By hand: 1 / 2z^2 + Phi^-1(1 - delta) / z, which the exact value approaches for small z.
    z = 1e-4 * math.sqrt(2 * math.log(1.25e5)) / 10 / 2
    by_hand = 1 / (2 * z**2) + norm.isf(1e-5) / z
    assert compose({mechanism: 1}, 1e-5).epsilon == pytest.approx(by_hand, rel=1e-6)
    assert by_hand == pytest.approx(8.5e8, rel=0.01)
