"""The ledger: what each client has spent of its privacy, by round and in sum."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fedleak.errors import require
from fedleak.privacy.accountants import compose, gaussian_multiplier
from fedleak.privacy.mechanisms import Adjacency, Mechanism, Trust, Unit, check_delta

# Relative difference from which on two epsilons are told apart.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Spent:
    """What was spent under one unit, adjacency and trust.

    Args:
        client: the client; None for the one of all clients that has spent most.
        round: the round; None for all rounds together.
        rounds: number of rounds in which something was released.
        unit: see :class:`Mechanism`.
        adjacency: see :class:`Mechanism`.
        trust: see :class:`Mechanism`.
        declared_epsilon: sum of the epsilons that are declared; None if a release declares none.
        declared_delta: sum of the deltas that are declared with them, as basic composition adds
            them up; None likewise.
        epsilon: effective epsilon of all releases together; infinite if none holds.
        delta: the delta of the effective epsilon.
        accountant: how the effective epsilon was computed.
    """

    client: int | None
    round: int | None
    rounds: int
    unit: Unit
    adjacency: Adjacency
    trust: Trust
    declared_epsilon: float | None
    declared_delta: float | None
    epsilon: float
    delta: float
    accountant: str


class Ledger:
    """Releases of mechanisms, by client and round.

    Releases that differ in unit, adjacency or trust protect different things and are added up apart
    from each other.

    Args:
        delta: the delta at which effective epsilons are computed, in (0, 1).

    Raises:
        BadInput: if delta is out of its range.
    """

    def __init__(self, *, delta: float) -> None:
        check_delta("a ledger", delta)
        self.delta = delta
        self._entries: dict[int, list[tuple[int, Mechanism]]] = {}

    def record(self, mechanism: Mechanism, *, clients: Iterable[int], round: int) -> None:
        """Enter what clients released in a round.

        Args:
            mechanism: the mechanism, with its number of releases in a round.
            clients: the clients; with central noise all that the server may draw.
            round: the round, from 1 on.

        Raises:
            BadInput: if the round is not a positive number.
        """
        require(round >= 1, f"Expected a round from 1 on, got {round}.")
        for client in clients:
            self._entries.setdefault(client, []).append((round, mechanism))

    def of_round(self, client: int, round: int) -> list[Spent]:
        """What a client spent in a round, by unit, adjacency and trust."""
        return self._spent(client, round)

    def of_client(self, client: int, *, further: Iterable[Mechanism] = ()) -> list[Spent]:
        """What a client spent in all rounds, by unit, adjacency and trust.

        Args:
            client: the client.
            further: mechanisms that are counted as if the client released them in one more round.
        """
        return self._spent(client, None, further)

    def total(self) -> list[Spent]:
        """What the run spent: the most that any client has, by unit, adjacency and trust.

        Clients hold different samples, so that a sample or a client is affected by its own client's
        releases alone.
        """
        most: dict[tuple[str, ...], Spent] = {}
        for client in sorted(self._entries):
            for spent in self.of_client(client):
                key = spent.unit, spent.adjacency, spent.trust
                if key not in most or spent.epsilon > most[key].epsilon:
                    most[key] = spent
        return [replace(spent, client=None) for spent in most.values()]

    def rows(self) -> list[Spent]:
        """What each client spent in each round, in the order of clients and rounds."""
        return [
            spent
            for client, entries in sorted(self._entries.items())
            for round in sorted({number for number, _ in entries})
            for spent in self.of_round(client, round)
        ]

    def _spent(
        self, client: int, round: int | None, further: Iterable[Mechanism] = ()
    ) -> list[Spent]:
        groups: dict[tuple[str, ...], list[tuple[int, Mechanism]]] = defaultdict(list)
        entries = self._entries.get(client, [])
        more = 1 + max((number for number, _ in entries), default=0)
        for number, mechanism in [*entries, *((more, mechanism) for mechanism in further)]:
            if round in (None, number):
                key = mechanism.unit, mechanism.adjacency, mechanism.trust
                groups[key].append((number, mechanism))
        return [
            _spent(
                Counter(mechanism for _, mechanism in entries), self.delta,
                rounds=len({number for number, _ in entries}), client=client, round=round,
            )
            for entries in groups.values()
        ]  # fmt: skip


def spent_by(mechanism: Mechanism, rounds: int, delta: float) -> Spent:
    """What a client spends that takes part in some rounds with one mechanism.

    Args:
        mechanism: the mechanism.
        rounds: number of rounds, at least 1.
        delta: the delta at which the effective epsilon is computed, in (0, 1).

    Raises:
        BadInput: if a number is out of its range.
    """
    return _spent(Counter({mechanism: rounds}), delta, rounds=rounds)


def _spent(
    releases: Counter[Mechanism],
    delta: float,
    *,
    rounds: int,
    client: int | None = None,
    round: int | None = None,
) -> Spent:
    """The sum of releases of one unit, adjacency and trust."""
    composed = compose(releases, delta)
    first = next(iter(releases))
    return Spent(
        client=client,
        round=round,
        rounds=rounds,
        unit=first.unit,
        adjacency=first.adjacency,
        trust=first.trust,
        declared_epsilon=_sum((m.epsilon, m.releases * count) for m, count in releases.items()),
        declared_delta=_sum((m.delta, m.releases * count) for m, count in releases.items()),
        epsilon=composed.epsilon,
        delta=delta,
        accountant=composed.accountant,
    )


def _sum(declared: Iterable[tuple[float | None, int]]) -> float | None:
    """The sum of declared values, each so many times; None if one is not declared."""
    total = 0.0
    for value, count in declared:
        if value is None:
            return None
        total += value * count
    return total


def findings(mechanism: Mechanism, rounds: int, delta: float) -> list[str]:
    """What a mechanism's figures mean, one sentence each.

    Args:
        mechanism: the mechanism.
        rounds: number of rounds, at least 1.
        delta: the delta at which effective epsilons are computed, in (0, 1).

    Returns:
        Whether an epsilon holds at all; whether the declared one does; what all rounds are worth;
        and the mechanism's own notes.

    Raises:
        BadInput: if a number is out of its range.
    """
    one, every = spent_by(mechanism, 1, delta), spent_by(mechanism, rounds, delta)
    found = []
    if mechanism.infinite:
        found.append(f"No epsilon holds: {mechanism.infinite}.")
    elif mechanism.epsilon is not None:
        found.append(_judged(mechanism, one.epsilon))
    if rounds > 1 and not mechanism.infinite:
        text = f"{rounds} rounds together are worth epsilon {every.epsilon:.3g} at delta {delta:g}"
        if every.declared_epsilon is not None:
            text += (
                f"; the declared ones add up to {every.declared_epsilon:g} at delta "
                f"{every.declared_delta:g}"
            )
        found.append(f"{text}.")
    if "sampling not counted" in every.accountant:
        found.append(
            f"The sampling rate of {mechanism.sampling_rate:g} lowers no epsilon here: no bound "
            f"for {mechanism.sampling} sampling and `{mechanism.adjacency}` is lower."
        )
    return [*found, *mechanism.notes]


def _judged(mechanism: Mechanism, effective: float) -> str:
    """Whether the epsilon that is declared for one release holds."""
    declared, delta = mechanism.epsilon, mechanism.delta
    assert declared is not None
    assert delta is not None
    if effective <= declared * (1 + TOLERANCE):
        return (
            f"The declared epsilon {declared:g} holds for one round: the noise is worth "
            f"{effective:.3g}."
        )
    needed = gaussian_multiplier(declared, delta) * mechanism.sensitivity
    compared = {
        "replace": "Replacing a contribution by another",
        "remove": "Removing a contribution",
    }
    return (
        f"The declared epsilon {declared:g} does not hold: the noise of one round is worth "
        f"{effective:.3g}. {compared[mechanism.adjacency]} moves what is sent by up to "
        f"{mechanism.sensitivity:g}, and the noise has a standard deviation of "
        f"{mechanism.standard_deviation:.3g}; epsilon {declared:g} takes noise of "
        f"standard deviation {needed:.3g}."
    )
