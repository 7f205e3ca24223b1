"""The privacy that an app's clients have spent: what is declared, and what it is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedleak.audit.facts import MechanismFacts, TrainingFacts
from fedleak.audit.simulation import Observed
from fedleak.audit.trainings import trainings
from fedleak.config import Budget, Privacy
from fedleak.errors import BadInput
from fedleak.federation.mechanisms import declared_multiplier, of_local_dp
from fedleak.privacy.mechanisms import (
    DELTA,
    Mechanism,
    adaptive_clipping,
    dp_sgd,
    fixed_clipping,
)
from fedleak.runs.spending import Spending, SpentRow, strongest

UNCOUNTED = ("AdaClipDPOptimizer",)
"""Opacus's optimisers that release more than the noised sums."""


def spent_by_app(observed: Observed, replies: Path) -> tuple[dict[str, Any] | None, list[SpentRow]]:
    """What an app's clients have spent in its rounds, as far as its mechanisms were seen.

    Args:
        observed: what the app's run has left.
        replies: the file of the lines about the replies.

    Returns:
        What :meth:`fedleak.runs.spending.Spending.facts` says, and its rows; None and no rows if
        the app was seen to use no mechanism.

    Raises:
        BadInput: if a setting of a mechanism is out of its range.
        MissingExtra: if dp-accounting is not installed, and there is a mechanism.
    """
    rounds: dict[int, dict[int, int]] = {}
    for row in trainings(replies):
        if row["client"] is not None and not row["failed"]:
            rounds.setdefault(row["round"], {})[row["client"]] = row["examples"] or 0
    seen = {path.stem: _facts(observed, path.stem) for path in observed.updates}
    by_place = {_place(key): facts for key, facts in seen.items() if facts is not None}
    if not observed.mechanisms and not any(facts.mechanisms for facts in by_place.values()):
        return None, []
    deltas = {
        float(used.values["delta"])
        for facts in by_place.values()
        for used in facts.mechanisms
        if used.name == "local_dp_mod"
    }
    delta = next(iter(deltas)) if len(deltas) == 1 and 0 < min(deltas) < 1 else DELTA
    current = [0]

    def mechanisms(client: int, weight: float | None) -> Sequence[Mechanism]:
        facts = by_place.get((current[0], client)) or _other(by_place, client)
        used = () if facts is None else facts.mechanisms
        local = strongest([found for m in used if (found := _of_client(m)) is not None], delta)
        mods = {m.name for m in used}
        return [*local, *(_of_server(m, weight, mods) for m in observed.mechanisms)]

    # The epsilon of a budget that nothing is held to is of no interest.
    spending = Spending("app", mechanisms, Privacy(Budget(1.0, delta)))
    for round_, examples in sorted(rounds.items()):
        current[0] = round_
        told = examples if all(examples.values()) else dict.fromkeys(examples, 1)
        spending.record(round_, sorted(examples), spending.weight(round_, told))
    facts = spending.facts() | {"budget": None}
    untold = [key for key in seen if seen[key] is None]
    if untold:
        facts["findings"].append(
            f"Of {len(untold)} of {len(seen)} trainings no mechanism could be seen; they are "
            "counted as those of the other clients."
        )
    return facts, spending.rows


def _facts(observed: Observed, key: str) -> TrainingFacts | None:
    try:
        return observed.facts(key)
    except BadInput:
        return None


def _place(key: str) -> tuple[int, int]:
    round_, _, client = key.partition("-")
    return int(round_[1:]), int(client[1:])


def _other(known: Mapping[tuple[int, int], TrainingFacts], client: int) -> TrainingFacts | None:
    """What was seen of a client in another round, or else of another client."""
    own = [facts for (_, number), facts in known.items() if number == client]
    return next(iter(own or known.values()), None)


def _of_client(used: MechanismFacts) -> Mechanism | None:
    values = used.values
    if used.name == "local_dp_mod":
        return of_local_dp(**values)
    if used.name != "dp_sgd":
        return None  # a mod that only clips
    rate = values["sampling_rate"]
    found = dp_sgd(
        noise_multiplier=values["noise_multiplier"],
        max_norm=values["max_norm"],
        steps=used.steps,
        sampling="poisson" if values["poisson"] and rate is not None else "other",
        sampling_rate=1.0 if rate is None else min(1.0, rate),
    )
    if values["optimizer"] in UNCOUNTED:
        reason = f"Opacus's {values['optimizer']} also tells how many samples it clipped"
        return replace(found, no_guarantee=reason)
    return found


def _of_server(used: MechanismFacts, weight: float | None, mods: set[str]) -> Mechanism:
    values, clients = used.values, int(used.values["clients"])
    largest = None if weight is None else min(1.0, max(weight, 1 / clients))
    if used.name == "fixed_clipping":
        found = fixed_clipping(
            noise_multiplier=values["noise_multiplier"], clipping_norm=values["clipping_norm"],
            clients=clients, largest_weight=largest,
        )  # fmt: skip
    else:
        count = values["clipped_count_stddev"]
        found = adaptive_clipping(
            noise_multiplier=declared_multiplier(values["noise_multiplier"], count),
            clients=clients, clipped_count_stddev=count,
            initial_clipping_norm=values["clipping_norm"], largest_weight=largest,
        )  # fmt: skip
    if values["needed_mod"] and values["needed_mod"] not in mods:
        reason = (
            f"no client was seen to use Flower's {values['needed_mod']}, without which nothing "
            "clips their changes"
        )
    elif not values["takes_the_mean"]:
        reason = f"the noise is made for a mean of changes, and {values['strategy']} is none"
    else:
        return found
    return replace(found, no_guarantee=reason)
