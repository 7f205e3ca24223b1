"""Mechanisms of differential privacy in Flower's client mods and strategies."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from flwr.serverapp.strategy import FedAvg, FedProx

from fedleak.privacy.mechanisms import (
    Mechanism,
    adaptive_clipping,
    fixed_clipping,
    local_dp_mod,
)

# By the names of the classes, which Flower's API from before the Message API has as well.
FIXED = (
    "DifferentialPrivacyServerSideFixedClipping", "DifferentialPrivacyClientSideFixedClipping",
)  # fmt: skip
ADAPTIVE = (
    "DifferentialPrivacyServerSideAdaptiveClipping",
    "DifferentialPrivacyClientSideAdaptiveClipping",
)
CENTRAL = (*FIXED, *ADAPTIVE)
"""Names of Flower's strategies with central noise."""
CLIPPING_MODS = {FIXED[1]: "fixedclipping_mod", ADAPTIVE[1]: "adaptiveclipping_mod"}
"""Strategy that leaves the clipping to its clients -> the mod that they have to have."""


def is_of_flower(value: Any, name: str) -> bool:
    """Whether a value is of a class of Flower, or a function of Flower.

    Args:
        value: an object or a function.
        name: the name of the class, or of the function.
    """
    kinds = (value,) if hasattr(value, "__name__") else type(value).__mro__
    return any(k.__name__ == name and k.__module__.partition(".")[0] == "flwr" for k in kinds)


def of_mod(mod: Any) -> Mechanism | None:
    """The mechanism of a client mod; None if it is not one that adds noise.

    Args:
        mod: a mod of a ClientApp.

    Raises:
        BadInput: if the settings of a ``LocalDpMod`` are out of their range.
    """
    if not is_of_flower(mod, "LocalDpMod"):
        return None
    return of_local_dp(mod.clipping_norm, mod.sensitivity, mod.epsilon, mod.delta)


def of_local_dp(
    clipping_norm: float, sensitivity: float, epsilon: float, delta: float
) -> Mechanism:
    """The mechanism of a ``LocalDpMod`` of these settings, which may be 0.

    Raises:
        BadInput: if a setting is out of its range.
    """
    if epsilon > 0 and 0 < delta < 1:
        return local_dp_mod(
            clipping_norm=clipping_norm, sensitivity=sensitivity, epsilon=epsilon, delta=delta
        )
    # Flower takes them too: it divides by 0, so that nothing that is sent is a number.
    known = local_dp_mod(clipping_norm=clipping_norm, sensitivity=0.0, epsilon=1.0, delta=0.5)
    reason = f"epsilon {epsilon:g} with delta {delta:g} gives no noise that can be computed"
    return replace(known, epsilon=epsilon, delta=delta, no_guarantee=reason)


def central_strategy(strategy: Any) -> Any | None:
    """The strategy with central noise, among a strategy and those within it; None without one.

    Args:
        strategy: a strategy of either of Flower's APIs.
    """
    seen: list[int] = []
    while strategy is not None and id(strategy) not in seen:
        seen.append(id(strategy))
        if any(is_of_flower(strategy, name) for name in CENTRAL):
            return strategy
        attributes = getattr(strategy, "__dict__", {})
        strategy = attributes.get("strategy", attributes.get("inner"))
    return None


def needed_mod(strategy: Any) -> str | None:
    """The mod by which the clients of a strategy clip; None if the server clips itself."""
    names = [name for name in CLIPPING_MODS if is_of_flower(strategy, name)]
    return CLIPPING_MODS[names[0]] if names else None


def of_strategy(
    strategy: Any, *, largest_weight: float | None = None, mods: Iterable[Any] = ()
) -> Mechanism | None:
    """The mechanism of a strategy with central noise; None if it adds none.

    The draw of the clients is not counted: who took part is told to the server and to the clients.

    Args:
        strategy: the strategy, or one around it.
        largest_weight: a client's largest weight in the mean of a round. If None, all weigh the
            same.
        mods: the mods of the clients, which clip where the strategy does not.

    Raises:
        BadInput: if a setting is out of its range.
    """
    found = central_strategy(strategy)
    if found is None:
        return None
    clients = found.num_sampled_clients
    weight = None if largest_weight is None else min(1.0, max(largest_weight, 1 / clients))
    if any(is_of_flower(found, name) for name in FIXED):
        mechanism = fixed_clipping(
            noise_multiplier=found.noise_multiplier, clipping_norm=found.clipping_norm,
            clients=clients, largest_weight=weight,
        )  # fmt: skip
    else:
        mechanism = adaptive_clipping(
            noise_multiplier=declared_multiplier(
                found.noise_multiplier, found.clipped_count_stddev
            ),
            clients=clients, clipped_count_stddev=found.clipped_count_stddev,
            initial_clipping_norm=found.clipping_norm, largest_weight=weight,
        )  # fmt: skip
    mod, inner = needed_mod(found), getattr(found, "strategy", None)
    if mod is not None and not any(is_of_flower(_function(each), mod) for each in mods):
        reason = f"the clients lack Flower's {mod}, without which nothing clips their changes"
    elif not takes_the_mean(inner):
        reason = f"the noise is made for a mean of changes, and {type(inner).__name__} is none"
    else:
        return mechanism
    return replace(mechanism, no_guarantee=reason)


def takes_the_mean(strategy: Any) -> bool:
    """Whether a strategy's result is the mean of what clients return, weighted by their examples.

    Args:
        strategy: a strategy of either of Flower's APIs.
    """
    kind = type(strategy)
    if kind.__module__.startswith("flwr.server.strategy"):
        return kind.__name__ in ("FedAvg", "FedProx")
    own = getattr(kind, "aggregate_train", None)
    usual = own in (FedAvg.aggregate_train, FedProx.aggregate_train)
    return usual and getattr(strategy, "weighted_by_key", None) == "num-examples"


def _function(mod: Any) -> Any:
    """Flower's function behind a mod of :mod:`fedleak.federation.clipping_mods`; else the mod."""
    return getattr(mod, "function", mod)


def declared_multiplier(raised: float, count_deviation: float) -> float:
    """The noise multiplier that was given to a strategy with adaptive clipping.

    Args:
        raised: the one that the strategy keeps, ``(z^-2 - (2 s)^-2)^(-1/2)`` for the given z.
        count_deviation: s, of the noise on the number of clients that clipped.
    """
    if not raised:
        return 0.0
    return 1 / math.hypot(1 / raised, 1 / (2 * count_deviation))
