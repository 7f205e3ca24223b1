"""What a federation has spent of its clients' privacy, round by round, and its budget."""

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedleak.config import Budget, Privacy
from fedleak.errors import require
from fedleak.privacy.ledger import Ledger, Spent, findings, spent_by
from fedleak.privacy.mechanisms import Mechanism
from fedleak.runs.text_files import write_whole

COLUMNS = (
    "model", "round", "client", "mechanism", "unit", "adjacency", "trust", "declared_epsilon",
    "declared_delta", "epsilon", "epsilon_so_far", "delta", "accountant",
)  # fmt: skip
# A sum of floats that equals the budget does not exceed it.
ROUNDING = 1e-9

Mechanisms = Callable[[int, float | None], Sequence[Mechanism]]
"""Client, and the largest weight of a client in the round's mean -> what the client releases."""


@dataclass(frozen=True)
class SpentRow:
    """A row of ``privacy.csv``: what a client spent in a round under one unit, adjacency and trust.

    Args:
        model: the model's name.
        round: the round.
        client: the client.
        mechanism: name of the mechanism.
        unit: see :class:`fedleak.privacy.Mechanism`.
        adjacency: see there.
        trust: see there.
        declared_epsilon: the epsilon that was declared for the round; None if none was.
        declared_delta: the delta that was declared with it.
        epsilon: the effective epsilon of the round; infinite if none holds.
        epsilon_so_far: that of all rounds up to this one.
        delta: the delta of both.
        accountant: how they were computed.
    """

    model: str
    round: int
    client: int
    mechanism: str
    unit: str
    adjacency: str
    trust: str
    declared_epsilon: float | None
    declared_delta: float | None
    epsilon: float
    epsilon_so_far: float
    delta: float
    accountant: str


class Spending:
    """Counts what the clients of one federation release, round by round.

    A client counts in every round in which it is asked: whether its reply came in time changes
    nothing in what it may have sent.

    Args:
        model: the model's name.
        mechanisms: what a client releases in a round.
        privacy: the budget, and the delta.
        sizes: number of examples of each client, by which the mean weighs them. If None, they are
            taken to weigh the same until their replies tell.
        left_out: whether a client's replies are left out of the mean in a round.
    """

    def __init__(
        self,
        model: str,
        mechanisms: Mechanisms,
        privacy: Privacy,
        *,
        sizes: Sequence[int] | None = None,
        left_out: Callable[[int, int], bool] = lambda round_, client: False,
    ) -> None:
        self.model = model
        self.rows: list[SpentRow] = []
        self.ended = ""
        self._mechanisms = mechanisms
        self._budget = privacy.budget
        self._sizes = sizes
        self._left_out = left_out
        self._ledger = Ledger(delta=privacy.delta)
        self._rounds: dict[Mechanism, Counter[int]] = {}

    def weight(self, round_: int, examples: Mapping[int, int]) -> float | None:
        """The largest weight of a client in the mean of a round; None if nobody is in it.

        Args:
            round_: the round.
            examples: client -> number of examples, of those who replied.
        """
        counted = [n for client, n in examples.items() if not self._left_out(round_, client)]
        return max(counted) / sum(counted) if sum(counted) else None

    def planned_weight(self, round_: int, clients: Sequence[int]) -> float | None:
        """The largest weight if all clients that are asked reply."""
        sizes = self._sizes
        return self.weight(round_, {c: 1 if sizes is None else sizes[c] for c in clients})

    def exceeded(self, round_: int, clients: Sequence[int]) -> str:
        """Why the budget does not hold a round with these clients; empty if it does.

        Args:
            round_: the round.
            clients: the clients that would be asked.
        """
        if self._budget is None:
            return ""
        weight = self.planned_weight(round_, clients)
        for client in clients:
            for spent in self._ledger.of_client(client, further=self._mechanisms(client, weight)):
                if not spent.epsilon <= self._budget.epsilon * (1 + ROUNDING):
                    return (
                        f"round {round_} would bring client {client} to an epsilon of "
                        f"{spent.epsilon:.3g} at delta {spent.delta:g} ({_whose(spent)}), above "
                        f"the {self._budget.epsilon:g} of `privacy.budget`"
                    )
        return ""

    def record(self, round_: int, clients: Sequence[int], weight: float | None) -> list[SpentRow]:
        """Count what clients have released in a round.

        Args:
            round_: the round.
            clients: the clients that were asked.
            weight: the largest weight of one in the mean. If None, they weigh the same.

        Returns:
            The rows of the round, which ``rows`` has as well.
        """
        new = []
        for client in clients:
            used = self._mechanisms(client, weight)
            names: dict[tuple[str, str, str], str]
            names = {(m.unit, m.adjacency, m.trust): m.name for m in used}
            for mechanism in used:
                self._ledger.record(mechanism, clients=[client], round=round_)
                self._rounds.setdefault(mechanism, Counter())[client] += 1
            so_far = {_key(spent): spent for spent in self._ledger.of_client(client)}
            for spent in self._ledger.of_round(client, round_):
                unit, adjacency, trust = key = _key(spent)
                row = SpentRow(
                    self.model, round_, client, names[key], unit, adjacency, trust,
                    spent.declared_epsilon, spent.declared_delta, spent.epsilon,
                    so_far[key].epsilon, spent.delta, spent.accountant,
                )  # fmt: skip
                new.append(row)
        self.rows += new
        return new

    def facts(self) -> dict[str, Any]:
        """What was spent, as plain values for ``summary.json``; an infinite epsilon is None.

        Returns:
            ``model``; ``delta``; ``budget`` (its epsilon, or None); ``ended``, why the run ended
            before its last round, or an empty text; ``spent``, by unit, adjacency and trust that of
            the client that has spent most, with ``reason`` where no epsilon holds; and
            ``findings``, sentences.
        """
        spent = []
        for total in self._ledger.total():
            own = [m for m in self._rounds if (m.unit, m.adjacency, m.trust) == _key(total)]
            values = asdict(total)
            for name in ("client", "round"):
                del values[name]
            values["epsilon"] = total.epsilon if math.isfinite(total.epsilon) else None
            values["mechanisms"] = sorted({m.name for m in own})
            values["reason"] = next((m.infinite for m in own if m.infinite), "")
            spent.append(values)
        sentences = [
            f"{mechanism.name}: {sentence}"
            for mechanism, rounds in self._typical()
            for sentence in findings(mechanism, rounds, self._ledger.delta)
        ]
        if self._rounds:
            sentences.append(
                "The metrics that a client reports, such as its loss, get no noise and are not "
                "counted."
            )
        return {
            "model": self.model, "delta": self._ledger.delta,
            "budget": None if self._budget is None else self._budget.epsilon,
            "ended": self.ended, "spent": spent, "findings": list(dict.fromkeys(sentences)),
        }  # fmt: skip

    def _typical(self) -> list[tuple[Mechanism, int]]:
        """Of each name the mechanism that a client used in most rounds, with their number."""
        found: dict[str, tuple[Mechanism, int]] = {}
        for mechanism, clients in self._rounds.items():
            rounds = max(clients.values())
            if mechanism.name not in found or rounds > found[mechanism.name][1]:
                found[mechanism.name] = mechanism, rounds
        return list(found.values())


def strongest(mechanisms: Sequence[Mechanism], delta: float) -> list[Mechanism]:
    """Of mechanisms that one update passes, the best of each unit, adjacency and trust.

    What follows noise is post-processing, so that each of them alone bounds what the update tells;
    their epsilons do not add up.

    Args:
        mechanisms: the mechanisms; one that only clips counts where there is no other.
        delta: the delta at which they are compared.
    """
    noisy = [m for m in mechanisms if m.standard_deviation or m.no_guarantee]
    best: dict[tuple[str, str, str], Mechanism] = {}
    for mechanism in noisy or mechanisms:
        key = mechanism.unit, mechanism.adjacency, mechanism.trust
        known = best.get(key)
        if known is None or (
            spent_by(mechanism, 1, delta).epsilon < spent_by(known, 1, delta).epsilon
        ):
            best[key] = mechanism
    return list(best.values())


def check_budget(budget: Budget, mechanisms: Sequence[Mechanism]) -> None:
    """Check that a budget holds at least one round of a client.

    Args:
        budget: the budget.
        mechanisms: what a client releases in a round.

    Raises:
        BadInput: if nothing in the run has an epsilon, or one round exceeds it.
    """
    choices = (
        "such as `clipping` and then `noise` as `defenses`, `dp_sgd`, or Flower's LocalDpMod under "
        "`federation.mods`"
    )
    require(
        bool(mechanisms),
        f"Expected a mechanism of differential privacy where `privacy.budget` is given, {choices}, "
        "got none.",
    )
    for mechanism in mechanisms:
        require(
            not mechanism.infinite,
            f"Expected a finite epsilon of {mechanism.name} where `privacy.budget` is given, but "
            f"{mechanism.infinite}: change it, or leave the budget out.",
        )
        spent = spent_by(mechanism, 1, budget.delta)
        require(
            spent.epsilon <= budget.epsilon * (1 + ROUNDING),
            f"Expected `privacy.budget.epsilon` of at least {_rounded_up(spent.epsilon)}, which "
            f"one round of {mechanism.name} spends at delta {budget.delta:g}, got "
            f"{budget.epsilon:g}: raise it, or the noise.",
        )


def write_privacy(path: Path, rows: Sequence[SpentRow]) -> None:
    """Write ``privacy.csv``, with ``inf`` where no epsilon holds.

    Args:
        path: the file, replaced in one step.
        rows: its rows.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_whole(path, text.getvalue())


def _key(spent: Spent) -> tuple[str, str, str]:
    return spent.unit, spent.adjacency, spent.trust


def _whose(spent: Spent) -> str:
    return f"{spent.unit}, {spent.adjacency}, {spent.trust}"


def _rounded_up(value: float) -> str:
    """A number with three digits that is not below the value."""
    text = f"{value:.3g}"
    return text if float(text) >= value else f"{value * 1.005:.3g}"
