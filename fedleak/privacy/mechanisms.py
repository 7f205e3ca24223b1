"""Mechanisms of differential privacy, by what decides how much privacy they give."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from fedleak.errors import require, unknown_name

Kind = Literal["gaussian", "laplace"]
Unit = Literal["sample", "client"]
Adjacency = Literal["replace", "remove"]
Trust = Literal["local", "central"]
Sampling = Literal["poisson", "fixed", "other"]

DELTA = 1e-5
"""The delta of effective epsilons where none is given."""


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Noise on a sum to which each sample or client contributes no more than a bound.

    Args:
        name: name of the mechanism, such as ``local_dp_mod``.
        kind: distribution of the noise.
        bound: largest norm of what one unit contributes to what the noise is added to: the L2 norm
            for gaussian, the L1 norm for laplace. If None, nothing bounds it.
        standard_deviation: standard deviation of the noise of each entry, at least 0.
        unit: whose contribution is protected.
        adjacency: what the unit's contribution is compared with: ``replace``, any other
            contribution within the bound, or ``remove``, a contribution of 0.
        trust: whether the noise is added before anybody else sees the contribution (``local``), or
            by a server that sees all contributions (``central``).
        clip: the bound on the norm that was set; None if there is none.
        sampling: how the units that contribute to a release are drawn: each independently
            (``poisson``), a set of fixed size without replacement (``fixed``), or in another way,
            which is not counted (``other``).
        sampling_rate: expected share of the units that contribute to a release, in (0, 1].
        releases: releases in a round, such as local steps, at least 1.
        count_deviation: of adaptive clipping, the standard deviation of the noise on the number of
            clients that clipped; if None, no such number is released.
        epsilon: the epsilon that is declared for one release; None if none is.
        delta: the delta that is declared with it, in (0, 1).
        no_guarantee: why no epsilon holds, where the figures do not say so.
        notes: sentences on what the figures depend on.

    Raises:
        BadInput: if a value is out of its range.
    """

    name: str
    kind: Kind = "gaussian"
    bound: float | None
    standard_deviation: float
    unit: Unit
    adjacency: Adjacency
    trust: Trust
    clip: float | None = None
    sampling: Sampling = "poisson"
    sampling_rate: float = 1.0
    releases: int = 1
    count_deviation: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    no_guarantee: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field, kind in (
            ("kind", Kind), ("unit", Unit), ("adjacency", Adjacency), ("trust", Trust),
            ("sampling", Sampling),
        ):  # fmt: skip
            if getattr(self, field) not in get_args(kind):
                raise unknown_name(field, str(getattr(self, field)), get_args(kind))
        if self.bound is not None:
            _check_positive(self.name, "bound", self.bound)
        _check_at_least_0(self.name, "standard_deviation", self.standard_deviation)
        if self.count_deviation is not None:
            _check_at_least_0(self.name, "count_deviation", self.count_deviation)
        _check(self.name, "sampling_rate", self.sampling_rate, 0 < self.sampling_rate <= 1,
               "above 0 and at most 1")  # fmt: skip
        check_count(self.name, "releases", self.releases)

    @property
    def sensitivity(self) -> float:
        """Largest norm by which the compared contributions differ; infinite without a bound."""
        if self.bound is None:
            return math.inf
        return self.bound * (2 if self.adjacency == "replace" else 1)

    @property
    def infinite(self) -> str:
        """Why no epsilon holds; empty if one does."""
        if self.no_guarantee:
            return self.no_guarantee
        if self.bound is None:
            return "nothing bounds the contribution before the noise is added"
        if not self.standard_deviation:
            return "no noise is added"
        if self.count_deviation == 0:
            return "no noise is added to the number of clients that clipped"
        return ""

    def noise_multiplier(self, *, of_bound: bool = False) -> float:
        """The noise's scale over the sensitivity, which decides the epsilon of one release.

        For gaussian the scale is the standard deviation, for laplace the parameter b of the density
        ``exp(-|x| / b) / 2b``, which is the standard deviation over the square root of 2. A noised
        number of clients, of which one client changes at most 1, is a further Gaussian entry: the
        squares of the two ratios of sensitivity to deviation add up.

        Args:
            of_bound: divide by the bound instead of the sensitivity.

        Returns:
            The ratio, at least 0; 0 if no epsilon holds.
        """
        if self.infinite:
            return 0.0
        distance = self.bound if of_bound else self.sensitivity
        assert distance is not None  # by `infinite`
        scale = self.standard_deviation / (math.sqrt(2) if self.kind == "laplace" else 1)
        if self.count_deviation is None:
            return scale / distance
        return 1 / math.hypot(distance / scale, 1 / self.count_deviation)


def local_dp_mod(
    *,
    clipping_norm: float,
    sensitivity: float,
    epsilon: float,
    delta: float,
    adjacency: Adjacency = "replace",
) -> Mechanism:
    """Flower's ``LocalDpMod``: each client clips the change of its weights and adds noise.

    The noise has the standard deviation ``sensitivity * sqrt(2 ln(1.25 / delta)) / epsilon``
    (Dwork and Roth 2014, theorem A.1, which holds for epsilon below 1), whatever the clipping norm
    is. The bound is the clipping norm.

    Args:
        clipping_norm: bound on the L2 norm of the change, positive.
        sensitivity: what the user takes for the sensitivity, at least 0.
        epsilon: the declared epsilon of one round, positive.
        delta: the declared delta, in (0, 1).
        adjacency: what a client's change is compared with.

    Raises:
        BadInput: if a value is out of its range.
    """
    name = "local_dp_mod"
    _check_positive(name, "clipping_norm", clipping_norm)
    _check_at_least_0(name, "sensitivity", sensitivity)
    _check_positive(name, "epsilon", epsilon)
    check_delta(name, delta)
    return Mechanism(
        name=name,
        bound=clipping_norm,
        clip=clipping_norm,
        standard_deviation=sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon,
        unit="client",
        adjacency=adjacency,
        trust="local",
        epsilon=epsilon,
        delta=delta,
        notes=(
            "The metrics of a reply, such as its number of examples and its loss, get no noise and "
            "are not counted.",
        ),
    )


def dp_sgd(
    *,
    noise_multiplier: float,
    max_norm: float = 1.0,
    steps: int = 1,
    sampling_rate: float = 1.0,
    sampling: Sampling = "poisson",
    adjacency: Adjacency = "remove",
) -> Mechanism:
    """DP-SGD, as by Opacus or fedleak's ``dp_sgd``: noise on the sum of clipped sample gradients.

    Abadi et al. 2016, algorithm 1 (arXiv 1607.00133). What a client sends after its steps is
    computed from the noised sums alone.

    Args:
        noise_multiplier: standard deviation of the noise over ``max_norm``, at least 0.
        max_norm: bound on the L2 norm of a sample's gradient, positive.
        steps: steps of a round, at least 1.
        sampling_rate: expected share of a client's samples in a batch, in (0, 1].
        sampling: how batches are drawn: ``poisson`` as by Opacus's data loader, ``fixed``, or
            ``other``, as by a data loader that shuffles; see :class:`Mechanism`.
        adjacency: what a sample is compared with; Opacus's accountants take ``remove``.

    Raises:
        BadInput: if a value is out of its range.
    """
    name = "dp_sgd"
    _check_at_least_0(name, "noise_multiplier", noise_multiplier)
    _check_positive(name, "max_norm", max_norm)
    check_count(name, "steps", steps)
    return Mechanism(
        name=name,
        bound=max_norm,
        clip=max_norm,
        standard_deviation=noise_multiplier * max_norm,
        unit="sample",
        adjacency=adjacency,
        trust="local",
        sampling=sampling,
        sampling_rate=sampling_rate,
        releases=steps,
        notes=("All samples of a client together are protected less than one sample.",),
    )


def fixed_clipping(
    *,
    noise_multiplier: float,
    clipping_norm: float,
    clients: int,
    population: int | None = None,
    largest_weight: float | None = None,
    adjacency: Adjacency = "remove",
) -> Mechanism:
    """Flower's central strategies with fixed clipping: noise on the mean of clipped changes.

    ``DifferentialPrivacyServerSideFixedClipping`` and its client-side twin add noise of standard
    deviation ``noise_multiplier * clipping_norm / clients`` to the mean (McMahan et al. 2018, arXiv
    1710.06963). The bound is the clipping norm times a client's largest weight in the mean.

    Args:
        noise_multiplier: as given to the strategy, at least 0.
        clipping_norm: bound on the L2 norm of a client's change, positive.
        clients: clients of a round (``num_sampled_clients``), at least 1.
        population: clients of which the server draws those of a round. If None, all take part.
        largest_weight: a client's largest weight in the mean, from ``1 / clients`` to 1, as FedAvg
            weights by the numbers of examples. If None, all clients weigh the same.
        adjacency: what a client's change is compared with.

    Raises:
        BadInput: if a value is out of its range.
    """
    name = "fixed_clipping"
    _check_at_least_0(name, "noise_multiplier", noise_multiplier)
    return _central(
        name, noise_multiplier, clipping_norm, clients, population, largest_weight, adjacency
    )


def adaptive_clipping(
    *,
    noise_multiplier: float,
    clients: int,
    clipped_count_stddev: float | None = None,
    initial_clipping_norm: float = 0.1,
    population: int | None = None,
    largest_weight: float | None = None,
    adjacency: Adjacency = "remove",
) -> Mechanism:
    """Flower's central strategies with adaptive clipping: the norm follows a noised quantile.

    ``DifferentialPrivacyServerSideAdaptiveClipping`` and its client-side twin raise the noise on
    the mean to ``(z^-2 - (2 s)^-2)^-1/2`` for a noise multiplier z, to pay for the number of
    clients that clipped, which gets noise of standard deviation s (Andrew et al. 2021, arXiv
    1905.03871, theorem 1). The theorem takes votes of -1/2 and 1/2; Flower adds up 0 and 1, so that
    a client changes the number by 1, twice as much. The clipping norm of a round multiplies the
    noise as it does the bound, and decides no epsilon.

    Args:
        noise_multiplier: as given to the strategy, at least 0.
        clients: see :func:`fixed_clipping`.
        clipped_count_stddev: s. If None, Flower's default, ``clients / 20``.
        initial_clipping_norm: bound on the L2 norm in the first round, positive.
        population: see :func:`fixed_clipping`.
        largest_weight: see :func:`fixed_clipping`.
        adjacency: see :func:`fixed_clipping`.

    Raises:
        BadInput: if a value is out of its range, or s is at most half the noise multiplier, which
            Flower refuses.
    """
    name = "adaptive_clipping"
    _check_at_least_0(name, "noise_multiplier", noise_multiplier)
    check_count(name, "clients", clients)
    count = clients / 20 if clipped_count_stddev is None else clipped_count_stddev
    _check_at_least_0(name, "clipped_count_stddev", count)
    raised = 0.0
    if noise_multiplier:
        require(
            2 * count > noise_multiplier,
            f"Expected `noise_multiplier` of {name} to be below {2 * count:g}, a tenth of the "
            f"{clients} clients, where no `clipped_count_stddev` is given, got "
            f"{noise_multiplier:g}."
            if clipped_count_stddev is None
            else f"Expected `clipped_count_stddev` of {name} to be above half the noise "
            f"multiplier, {noise_multiplier / 2:g}, got {count:g}.",
        )
        raised = noise_multiplier / math.sqrt(1 - (noise_multiplier / (2 * count)) ** 2)
    return _central(
        name, raised, initial_clipping_norm, clients, population, largest_weight, adjacency,
        count_deviation=count,
    )  # fmt: skip


def _central(
    name: str,
    noise_multiplier: float,
    clip: float,
    clients: int,
    population: int | None,
    largest_weight: float | None,
    adjacency: Adjacency,
    count_deviation: float | None = None,
) -> Mechanism:
    """Noise on a weighted mean of clipped changes."""
    _check_positive(name, "clipping_norm", clip)
    check_count(name, "clients", clients)
    rate = 1.0
    if population is not None:
        check_count(name, "population", population)
        require(
            population >= clients,
            f"Expected `population` of {name} to be at least the {clients} clients of a round, got "
            f"{population}.",
        )
        rate = clients / population
    notes = ["It protects from those who see the model, not from the server."]
    if rate < 1 and adjacency == "replace":
        notes.append("Drawing clients counts only against those who cannot know who was drawn.")
    weight = 1 / clients if largest_weight is None else largest_weight
    _check(name, "largest_weight", weight, 1 / clients <= weight <= 1,
           f"from {1 / clients:g} to 1")  # fmt: skip
    if largest_weight is None:
        notes.append(
            "All clients are taken to weigh the same; FedAvg weights by numbers of examples, and "
            "one client may weigh more."
        )
    return Mechanism(
        name=name,
        bound=clip * weight,
        clip=clip,
        standard_deviation=noise_multiplier * clip / clients,
        unit="client",
        adjacency=adjacency,
        trust="central",
        sampling="fixed",
        sampling_rate=rate,
        count_deviation=count_deviation,
        notes=tuple(notes),
    )


def noise(
    *,
    sigma: float,
    max_norm: float | None = None,
    distribution: Kind = "gaussian",
    relative: bool = False,
    entries: int | None = None,
    adjacency: Adjacency = "replace",
) -> Mechanism:
    """The defence ``noise`` of fedleak, behind ``clipping`` or without it.

    Args:
        sigma: standard deviation of the noise of each entry, at least 0.
        max_norm: bound of ``clipping`` on the update's L2 norm, positive. If None, there is no
            clipping before the noise, and no epsilon holds.
        distribution: gaussian or laplace. A bound c on the L2 norm of n entries bounds their L1
            norm, which counts for laplace, by ``c sqrt(n)``.
        relative: whether sigma is relative to the update's norm, so that the noise tells the norm
            and no epsilon holds.
        entries: number of entries of an update, which laplace behind a clipping needs.
        adjacency: what a client's update is compared with.

    Raises:
        BadInput: if a value is out of its range, or ``entries`` is missing or has no use.
    """
    name = "noise"
    _check_at_least_0(name, "sigma", sigma)
    bound = max_norm
    if max_norm is not None:
        _check_positive(name, "max_norm", max_norm)
    if distribution == "laplace" and max_norm is not None:
        require(
            entries is not None,
            f"Expected `entries` of {name}, the number of entries of an update, for laplace noise "
            "behind a clipping of the L2 norm, got none.",
        )
        assert entries is not None
        check_count(name, "entries", entries)
        bound = max_norm * math.sqrt(entries)
    else:
        require(
            entries is None,
            f"Expected `entries` of {name} together with laplace noise and `max_norm` alone, got "
            f"{entries}.",
        )
    return Mechanism(
        name=name,
        kind=distribution,
        bound=bound,
        clip=max_norm,
        standard_deviation=sigma,
        unit="client",
        adjacency=adjacency,
        trust="local",
        no_guarantee="the noise is scaled by the update's own norm" if relative else "",
    )


MECHANISMS: dict[str, Callable[..., Mechanism]] = {
    "local_dp_mod": local_dp_mod,
    "dp_sgd": dp_sgd,
    "fixed_clipping": fixed_clipping,
    "adaptive_clipping": adaptive_clipping,
    "noise": noise,
}
"""Name -> the function that makes the mechanism of its settings."""


def check_delta(name: str, delta: float) -> None:
    """Check that a delta is a probability between 0 and 1.

    Raises:
        BadInput: if it is not.
    """
    _check(name, "delta", delta, 0 < delta < 1, "above 0 and below 1")


def check_count(name: str, setting: str, value: int) -> None:
    """Check that a setting is a whole number from 1 on.

    Raises:
        BadInput: if it is not.
    """
    _check(name, setting, value, type(value) is int and value >= 1, "a whole number from 1 on")


def _check_positive(name: str, setting: str, value: float) -> None:
    _check(name, setting, value, 0 < value < math.inf, "positive")


def _check_at_least_0(name: str, setting: str, value: float) -> None:
    _check(name, setting, value, 0 <= value < math.inf, "at least 0")


def _check(name: str, setting: str, value: float, fits: bool, expected: str) -> None:
    require(fits, f"Expected `{setting}` of {name} to be {expected}, got {value}.")
