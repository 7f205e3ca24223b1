"""The sum of a round's updates: all that a server sees behind secure aggregation."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from fedleak.audit.ladder import Victim
from fedleak.errors import BadInput, require
from fedleak.updates.knowledge import Protocol
from fedleak.updates.local_training import LocalTraining


def sums_of_rounds(victims: Sequence[Victim]) -> tuple[list[Victim], list[str]]:
    """The sum of the updates of each round in which several clients trained.

    Args:
        victims: the victims of all rounds.

    Returns:
        The sums in the order of rounds, and why others cannot be attacked, a sentence each.
    """
    rounds: dict[int, list[Victim]] = {}
    for victim in victims:
        rounds.setdefault(victim.update.round, []).append(victim)
    found: list[Victim] = []
    reasons: list[str] = []
    for number, clients in sorted(rounds.items()):
        if len(clients) == 1:
            continue
        try:
            found.append(sum_of_round(clients))
        except BadInput as error:
            reasons.append(f"the sum of the updates of round {number}: {error}")
    return found, reasons


def sum_of_round(victims: Sequence[Victim]) -> Victim:
    """The mean of the updates of one round, weighted by the clients' numbers of samples.

    It is what FedAvg takes; the sum is the same up to a factor that the server knows. It is exact:
    the rounding of a protocol's own encoding is left out. The attacker is told how many samples
    each client has, as replies say in clear.

    Args:
        victims: the victims of one round, in the order of the clients.

    Returns:
        A victim whose samples are those of all, the first client's first.

    Raises:
        BadInput: if there are fewer than two, they are not of one round, or the clients' training
            differs in more than the number of samples, so that no attack can follow their sum.
    """
    require(
        len(victims) > 1,
        f"Expected at least 2 updates of a round to add up, got {len(victims)}.",
    )
    first = victims[0]
    protocol: Protocol = "fedsgd" if first.update.protocol == "fedsgd" else "delta"
    numbers = tuple(victim.known.knowledge.num_samples for victim in victims)
    rounds = sorted({victim.update.round for victim in victims})
    require(len(rounds) == 1, f"Expected updates of one round, got those of rounds {rounds}.")
    facts = first.known.knowledge
    for victim in victims[1:]:
        own = victim.known.knowledge
        same = (own.input_shape, own.training) == (facts.input_shape, facts.training)
        require(
            same
            and victim.whole == first.whole
            and (victim.update.protocol == "fedsgd") == (protocol == "fedsgd"),
            f"Expected clients that train alike, but {first.key} and {victim.key} differ.",
        )
    weights = [number / sum(numbers) for number in numbers]
    knowledge = replace(
        facts,
        num_samples=sum(numbers),
        clients=numbers,
        aggregation="weighted_mean",
        labels=None if facts.labels is None else facts.labels[:1].expand(
            sum(numbers), *facts.labels.shape[1:]
        ),
        protocol=protocol,
        local_training=_common_training(victims),
        learning_rate=None, local_steps=None, batch_size=None,
    )  # fmt: skip
    update = replace(
        first.update, client=0, protocol=protocol, num_examples=sum(numbers),
        received=MeanOfUpdates(victims, weights), clients=len(victims),
        aggregation="weighted_mean",
    )  # fmt: skip
    key = f"r{first.update.round:04d}-sum"
    known = replace(first.known, knowledge=knowledge)
    return Victim(key, update, known, first.whole, parts=tuple(victims))


class MeanOfUpdates(Mapping[str, Tensor]):
    """The weighted mean of updates, each tensor of which is added up when it is used.

    It has the floating point tensors that every client sent: gradients, or changes of weights in
    float64. A pickle has the tensors themselves.

    Args:
        victims: the clients.
        weights: share of each in the mean.
    """

    def __init__(self, victims: Sequence[Victim], weights: Sequence[float]) -> None:
        self._updates = [victim.update for victim in victims]
        self._weights = list(weights)
        first, *others = (update.received for update in self._updates)
        self._names = [
            name
            for name, value in first.items()
            if value.is_floating_point() and all(name in other for other in others)
        ]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        total: Tensor | None = None
        for update, weight in zip(self._updates, self._weights, strict=True):
            gradient = update.protocol == "fedsgd"
            value = update.received[name] if gradient else update.change([name])[name]
            total = weight * value if total is None else total.add_(value, alpha=weight)
        assert total is not None
        return total

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def _common_training(victims: Sequence[Victim]) -> LocalTraining:
    """The local training that all clients share: as many steps, or as many epochs."""
    facts = [victim.known.knowledge for victim in victims]
    if victims[0].update.protocol == "fedsgd":
        return replace(facts[0].local, steps=None, epochs=None, batch_size=None)
    settings = [replace(own.local, steps=None, epochs=None, batch_size=None) for own in facts]
    size = max(own.batch_size or own.num_samples for own in facts)
    batches = [math.ceil(own.num_samples / size) for own in facts]
    require(
        all(one == settings[0] for one in settings)
        and all((own.batch_size or own.num_samples) == min(size, own.num_samples) for own in facts),
        "Expected clients that train alike, but their optimisers or batches differ.",
    )
    steps = {own.steps for own in facts}
    if len(steps) == 1:
        return replace(settings[0], steps=steps.pop(), batch_size=size)
    passes = {own.steps / number for own, number in zip(facts, batches, strict=True)}
    epochs = passes.pop()
    if passes or epochs != int(epochs):
        raise BadInput("Expected clients that train alike, but their numbers of steps differ.")
    return replace(settings[0], epochs=int(epochs), batch_size=size)
