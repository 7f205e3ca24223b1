"""The interface of a defence: a client changes its update before it sends it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedleak.errors import BadInput, require
from fedleak.updates.entries import Entries, SentUpdate
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Protocol


@dataclass(frozen=True)
class Outgoing:
    """The update that a client is about to send, and what it was computed from.

    Args:
        update: parameter name -> gradient (fedsgd), or change of the weights (fedavg).
        model: the client's model with the weights that the server sent.
        batch: the batch ``(inputs, labels)`` of the gradient. If None, the update is of several
            local steps.
        noise: noise slot -> noise that it drew for the batch, ``(batch, ...)``, with which a
            defence can repeat the client's forward pass.
        steps: number of local steps that the update is of, at least 1.
    """

    update: Tensors
    model: nn.Module
    batch: tuple[Tensor, Tensor] | None = None
    noise: Tensors = field(default_factory=dict)
    steps: int = 1


Family = Literal[
    "gradient perturbation",
    "gradient compression",
    "gradient clipping",
    "representation perturbation",
    "differential privacy",
]


class Defense(ABC):
    """Changes a client's update so that it leaks less.

    A plugin sets the class attributes and writes :meth:`protect`. Its hyperparameters are the
    fields of a keyword-only dataclass (``@dataclass(kw_only=True, eq=False, repr=False)``). It is
    found by name through the entry point group ``fedleak.defenses`` or by its dotted path.

    The class attributes annotated here are the facts that the tests, ``fedleak list`` and the
    documentation read.
    """

    name: ClassVar[str]
    """The name in tables and on the command line."""
    paper: ClassVar[str]
    """Authors, venue, address."""
    family: ClassVar[Family]
    """What is done to the gradient, in the terms of the literature."""
    threat_model: ClassVar[str] = "honest-but-curious server"
    """The attacker that it is meant for: one that only reads what clients send."""
    needs: ClassVar[str] = "any update"
    """What the client or its model must have, in a few words."""
    needs_batch: ClassVar[bool] = False
    """Whether it works on the gradient of one batch only, that is with the protocol fedsgd."""
    recomputes_gradient: ClassVar[bool] = False
    """Whether it computes its update from the batch alone, and so undoes defences before it."""
    randomised: ClassVar[bool] = False
    """Whether what it sends depends on random draws."""
    uses_update_alone: ClassVar[bool] = False
    """Whether it reads nothing of the client's but its update: a privacy budget that holds for the
    update before it holds for the one after it. If not, no budget is counted."""

    @abstractmethod
    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """The update that is sent instead.

        Args:
            outgoing: the client's update; not to be changed in place.
            generator: random generator of every draw.
            memory: the defence's state of this client from earlier rounds, by name; changed in
                place.

        Returns:
            Tensors of the same names and shapes.

        Raises:
            BadInput: if the defence cannot be applied to such an update or model.
        """

    def keeps_norm(self) -> bool:
        """Whether the update's norm never grows, so that a clipping before it still bounds it."""
        return False

    def refuses(self, protocol: Protocol) -> str | None:
        """Why the defence cannot be used with a protocol. If None, it can.

        Args:
            protocol: ``fedsgd`` (clients send gradients) or ``fedavg`` (they send weights).
        """
        if self.needs_batch and protocol != "fedsgd":
            return f"{self.name} works on the gradient of one batch, which {protocol} does not send"
        return None

    def refuses_model(self, model: nn.Module) -> str | None:
        """Why the defence cannot be used on a model. If None, it can.

        Args:
            model: the clients' model.
        """
        return None

    def entries_before(self, sent: SentUpdate) -> Mapping[str, Entries] | None:
        """What an attacker that knows the defence infers of the update before it.

        Args:
            sent: the update as it came, which :meth:`contradiction` does not object to.

        Returns:
            Parameter name -> what is known of its entries; parameters that are missing came as they
            were. None, as here, if the defence tells nothing that is of use.
        """
        return None

    def contradiction(self, sent: SentUpdate) -> str | None:
        """Why an update cannot have come through the defence with these settings.

        Args:
            sent: the update as it came.

        Returns:
            Half a sentence, such as ``none of its entries is 0``; None if it can have.
        """
        return None


def protect(
    defenses: Sequence[Defense], outgoing: Outgoing, *, seed: int, memory: Tensors
) -> tuple[Tensors, dict[str, float]]:
    """Apply defences in order and report the effect of each.

    Args:
        defenses: the defences.
        outgoing: the client's update.
        seed: seed of every draw.
        memory: the defences' state from earlier rounds, by ``position/name``; changed in place.

    Returns:
        The update to send, and three figures of each defence, by ``defense/NAME/norm`` and so on
        (``NAME 2`` for the second one of that name): ``norm`` (of the update after it),
        ``sparsity`` (share of zeros, 0 to 1) and ``snr_db`` (squared norm of the update before it
        over that of the change, in dB; infinite if it changed nothing).
    """
    generator = torch.Generator().manual_seed(seed)
    report: dict[str, float] = {}
    for position, defense in enumerate(defenses):
        prefix = f"{position}/"
        own = {n.removeprefix(prefix): v for n, v in memory.items() if n.startswith(prefix)}
        before = outgoing.update
        after = defense.protect(outgoing, generator=generator, memory=own)
        memory.update({f"{prefix}{name}": value for name, value in own.items()})
        earlier = sum(other.name == defense.name for other in defenses[:position])
        name = f"{defense.name} {earlier + 1}" if earlier else defense.name
        for figure, value in _effect(before, after).items():
            report[f"defense/{name}/{figure}"] = value
        outgoing = replace(outgoing, update=after)
    return outgoing.update, report


def filtered(owner: str, update: Tensors) -> Tensors:
    """The part of an update that a filter of single entries changes.

    Whole numbers, such as the number of batches that a batch norm has seen, and parameters of a
    single number pass filters as they are.

    Args:
        owner: name of the filter, for the message.
        update: the update.

    Raises:
        BadInput: if it holds NaN or infinity, which no comparison with a threshold sees.
    """
    found = {n: v for n, v in update.items() if v.is_floating_point() and v.dim()}
    for name, value in found.items():
        if not bool(value.isfinite().all()):
            raise BadInput(
                f"Expected finite numbers for {owner}, got NaN or infinity in `{name}`: this "
                "client's training diverged."
            )
    return found


def sizes(update: Tensors) -> Tensor:
    """The magnitudes of all entries of an update, as one vector."""
    return torch.cat([value.detach().abs().flatten() for value in update.values()])


def share_of_zeros(update: Tensors) -> float:
    """The share of an update's entries that are 0."""
    entries = sum(value.numel() for value in update.values())
    return 1 - sum(int(value.count_nonzero()) for value in update.values()) / entries


def dropped_entries(sent: SentUpdate, cutoff: Mapping[str, Tensor | float]) -> dict[str, Entries]:
    """What is known where a filter set entries up to some size to 0 and kept the others.

    Args:
        sent: the update as it came.
        cutoff: by parameter name the size that no entry that was set to 0 exceeds.
    """
    found = {}
    for name, largest in cutoff.items():
        value = sent.tensors[name]
        bound = largest + sent.margin(name)
        found[name] = Entries.exactly(value).between(value == 0, -bound, bound)
    return found


def total_norm(update: Tensors) -> float:
    """The Euclidean norm of all tensors as one vector."""
    return math.sqrt(sum(float(value.double().square().sum()) for value in update.values()))


def scaled(update: Tensors, factor: float) -> Tensors:
    """Every tensor multiplied by a factor."""
    return {name: value * factor for name, value in update.items()}


def check_range(owner: str, name: str, value: Any, condition: bool, expected: str) -> None:
    """Raise BadInput for a hyperparameter out of its range.

    Args:
        owner: name of the plugin, for the message.
        name: name of the hyperparameter.
        value: its value.
        condition: whether the value is within the range.
        expected: the range in words.
    """
    require(condition, f"Expected `{name}` of {owner} to be {expected}, got {value}.")


def _effect(before: Tensors, after: Tensors) -> dict[str, float]:
    entries = sum(value.numel() for value in after.values())
    zeros = sum(int((value == 0).sum()) for value in after.values())
    change = total_norm({name: after[name] - value for name, value in before.items()})
    signal = total_norm(before)
    ratio = math.inf if change == 0 else 20 * math.log10(signal / change) if signal else -math.inf
    return {"norm": total_norm(after), "sparsity": zeros / entries, "snr_db": ratio}
