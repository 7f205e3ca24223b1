"""The mean of several clients' updates: all that a server sees behind secure aggregation."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedleak.errors import require
from fedleak.updates.compression import CompactTensors
from fedleak.updates.files import Tensors
from fedleak.updates.update import InterceptedUpdate


def mean_of_updates(updates: Sequence[InterceptedUpdate], client: int) -> InterceptedUpdate:
    """The mean of updates of a round, weighted by the clients' numbers of samples, as one update.

    It is exact, in float64: what a protocol of secure aggregation rounds is not simulated. Of
    weights it is the mean of their changes, in which small steps are not lost.

    Args:
        updates: updates of one round, in the order of the clients.
        client: number of the client as whose the mean is stored.

    Returns:
        A gradient, or a change of weights (``delta``), of what every client sent.

    Raises:
        BadInput: if the clients were sent different weights, or some sent gradients and others
            weights.
    """
    first = updates[0]
    for other in updates[1:]:
        same = other.sent.keys() == first.sent.keys() and all(
            value is first.sent[name] or torch.equal(value, first.sent[name])
            for name, value in other.sent.items()
        )
        require(
            same and other.protocol == first.protocol,
            f"Expected clients that were sent the same weights and answer alike, but {first.key} "
            f"and {other.key} differ.",
        )
    total = sum(update.num_examples for update in updates)
    mean: dict[str, Tensor] = {}
    common = set.intersection(*(set(update.received) for update in updates))
    for update in updates:
        share = update.num_examples / total
        for name, value in _moves(update).items():
            if name in common:
                mean[name] = share * value + mean.get(name, torch.zeros(()))
    gradient = first.protocol == "fedsgd"
    received = {name: value.float() for name, value in mean.items()} if gradient else mean
    return replace(
        first,
        client=client,
        protocol="fedsgd" if gradient else "delta",
        num_examples=total,
        received=CompactTensors(received) if gradient else received,
        clients=len(updates),
        aggregation="weighted_mean",
    )


def _moves(update: InterceptedUpdate) -> Tensors:
    """A gradient, or the change of all floating point tensors, in float64."""
    if update.protocol == "fedsgd":
        return {name: value.double() for name, value in update.received.items()}
    return update.change([n for n, value in update.sent.items() if value.is_floating_point()])
