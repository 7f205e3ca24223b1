"""The server's prior knowledge about a client's training, besides the update itself."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from fedleak.errors import BadInput, require, unknown_name
from fedleak.updates.entries import KnownDefense
from fedleak.updates.local_training import LocalTraining

Protocol = Literal["fedsgd", "fedavg", "delta"]
LabelRecovery = Literal["bias_counts", "idlg", "row_minima"]
Aggregation = Literal["weighted_mean", "mean", "sum"]
ValueRange = tuple[float, float] | tuple[Tensor, Tensor]


def batch_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a client differentiates.

    It is ``model.batch_loss(batch)`` if the module has such a method, otherwise the result of
    ``model.training_step(batch, 0)``, without the 0 if it takes no index: the loss, or a mapping
    with ``"loss"``.

    Args:
        model: the module.
        batch: a batch of the module's data loader, such as ``(images, labels)``.

    Returns:
        The loss, a scalar tensor.

    Raises:
        BadInput: if the module has neither method or optimises by hand and has no ``batch_loss``,
            or the result is not a scalar tensor.
    """
    method = getattr(model, "batch_loss", None)
    if method is None:
        step = getattr(model, "training_step", None)
        if step is None:
            raise BadInput(
                f"Expected {type(model).__name__} to have `batch_loss(batch)` or "
                "`training_step(batch, batch_idx)`, got a module with neither."
            )
        require(
            getattr(model, "automatic_optimization", True),
            f"Expected {type(model).__name__} to have `batch_loss(batch)`, the loss that a client "
            "differentiates, as it optimises by hand (`automatic_optimization` is off), got "
            "`training_step` alone, which makes steps.",
        )
        result = step(batch, 0) if takes_index(step) else step(batch)
    else:
        result = method(batch)
    loss = result["loss"] if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        raise BadInput(
            f"Expected the loss of {type(model).__name__} to be a scalar tensor, "
            f"got {type(loss).__name__}."
        )
    return loss


def takes_index(step: Callable[..., Any]) -> bool:
    """Whether a training step takes the number of the batch, which Lightning does not demand.

    Args:
        step: a module's ``training_step``.
    """
    parameters = inspect.signature(step).parameters.values()
    return len(parameters) > 1 or any(one.kind is one.VAR_POSITIONAL for one in parameters)


@dataclass(frozen=True)
class ClientPart:
    """One of the clients whose updates were combined.

    Args:
        samples: its samples among those of all clients.
        weight: share of its update in the mean that came.
        batches: of each of its local steps in an epoch, the samples among those of all clients.
        knowledge: what is known of it alone.
    """

    samples: slice
    weight: float
    batches: tuple[slice, ...]
    knowledge: "Knowledge"

    @property
    def steps(self) -> int:
        """Number of its optimiser steps."""
        return self.knowledge.steps

    @property
    def epochs(self) -> int:
        """Number of its complete local epochs."""
        return self.knowledge.epochs


@dataclass(frozen=True)
class Knowledge:
    """The server's prior knowledge: its part of the threat model besides the update.

    Args:
        model: the architecture; an attack loads the sent weights into a copy of it.
        input_shape: shape of one sample, such as ``(C, H, W)``.
        num_classes: number of classes. If None, the number of outputs of the last linear layer;
            not used where the labels are no classes.
        mean: mean of each channel with which the clients normalise their data.
        std: standard deviation of each channel.
        num_samples: number of samples that the gradient was computed from, of all clients
            together. If 0, it is the number of ``labels``, or else taken from the update; the
            findings then say which number it is.
        labels: the samples' labels as the loss takes them, ``(num_samples, ...)``, a tensor or a
            list: classes, or any other targets. If None, they are not known.
        protocol: ``fedsgd`` (the update is a gradient), ``fedavg`` (it is weights) or ``delta`` (it
            is a change of weights, new minus old).
        local_training: the client's local training. If None, it is plain SGD with the three
            arguments that follow.
        learning_rate: short for ``LocalTraining(learning_rate=...)``; afterwards, as the two
            others, what ``local_training`` says.
        local_steps: short for ``LocalTraining(steps=...)``.
        batch_size: short for ``LocalTraining(batch_size=...)``.
        training: whether the client's model was in train mode (dropout on, batch norm using the
            batch's statistics) or in eval mode. If None, each module is in the mode in which it is
            in ``model``.
        loss: the loss of a batch, given model and batch.
        label_recovery: how an attack recovers unknown labels; see :mod:`fedleak.attacks.labels`.
        value_range: lowest and highest value of the samples before normalisation, which an attack
            keeps to; either may be infinite, of others than images. Two numbers, or two tensors of
            the shape of a sample, such as the limits of a table's columns. If None, 0 and 1 of
            images ``(C, H, W)``, and no limits of other samples.
        label_example: labels ``(1, ...)`` of the type and shape that the loss takes. If None, and
            the labels are not known, an attack finds it out by calling the loss.
        clients: number of clients whose updates came as one, as the server sees them behind secure
            aggregation: each began with the sent weights and trained on its own samples, of which
            all have equally many. Or the number of samples of each client. The samples, labels and
            noise of the first client come first. ``local_training`` is that of each client.
        aggregation: how the updates of several clients were combined: ``weighted_mean`` (the mean
            weighted by the clients' numbers of samples, as FedAvg takes it), ``mean`` (all clients
            count alike) or ``sum`` (of gradients or changes of weights).
        defense: the last defence that the client applies to its update, with its settings, such as
            ``fedleak.defenses.Pruning(ratio=0.5)``. If None, the server knows of none, and takes
            the update for what the client computed.

    Raises:
        BadInput: if a value is out of its range, the protocol is none of the three, a fact of the
            local training is given twice with different values, or the numbers of samples and of
            clients do not fit each other.
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    num_classes: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    num_samples: int = 0
    labels: Tensor | None = None
    protocol: Protocol = "fedsgd"
    local_training: LocalTraining | None = None
    learning_rate: float | None = None
    local_steps: int | None = None
    batch_size: int | None = None
    training: bool | None = None
    loss: Callable[[nn.Module, Any], Tensor] = field(default=batch_loss)
    label_recovery: LabelRecovery = "bias_counts"
    value_range: ValueRange | None = None
    label_example: Tensor | None = None
    clients: int | tuple[int, ...] = 1
    aggregation: Aggregation = "weighted_mean"
    defense: KnownDefense | None = None

    def __post_init__(self) -> None:
        self._check_clients()
        require(
            self.num_samples >= 0,
            f"Expected `num_samples` to be at least 1, got {self.num_samples}.",
        )
        own = self.defense
        require(
            own is None
            or (not isinstance(own, type) and callable(getattr(own, "entries_before", None))),
            "Expected `defense` to be a defence with its settings, such as "
            f"fedleak.defenses.Pruning(ratio=0.5), got {own!r}.",
        )
        labels: Any = self.labels
        if isinstance(labels, list | tuple):
            object.__setattr__(self, "labels", torch.as_tensor(labels))
        if self.protocol not in get_args(Protocol):
            raise unknown_name("protocol", str(self.protocol), get_args(Protocol))
        shape: tuple[Any, ...] = tuple(self.input_shape)
        require(
            bool(shape) and all(isinstance(side, int) and side >= 1 for side in shape),
            f"Expected `input_shape` to be sizes of at least 1, such as (3, 32, 32), got {shape}.",
        )
        channels = (1, shape[0])
        require(
            len(self.mean) in channels
            and len(self.std) in channels
            and all(map(math.isfinite, self.mean))
            and all(0 < value < math.inf for value in self.std),
            f"Expected a finite mean and a positive standard deviation for each of {shape[0]} "
            f"channels, got {self.mean} and {self.std}.",
        )
        self._check_range()
        require(
            self.num_classes is None or self.num_classes >= 1,
            f"Expected `num_classes` to be at least 1, got {self.num_classes}.",
        )
        self._settle_local_training()

    def _check_clients(self) -> None:
        """Check the clients; where the samples of each are told, so is their number."""
        given: Any = self.clients
        numbers = tuple(given) if isinstance(given, tuple | list) else (given,)
        require(
            bool(numbers)
            and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in numbers),
            "Expected `clients` to be a number of clients from 1, or the number of samples of "
            f"each, got {given!r:.60}.",
        )
        if self.aggregation not in get_args(Aggregation):
            raise unknown_name("aggregation", str(self.aggregation), get_args(Aggregation))
        if isinstance(given, tuple | list):
            object.__setattr__(self, "clients", numbers)
            if self.num_samples == 0:
                object.__setattr__(self, "num_samples", sum(numbers))
            require(
                self.num_samples == sum(numbers),
                f"Expected `num_samples` to be that of all clients together, {sum(numbers)} by "
                f"`clients` {list(numbers)}, got {self.num_samples}.",
            )
        else:
            require(
                self.num_samples % given == 0,
                f"Expected `num_samples`, of all clients together, to be a multiple of `clients` "
                f"{given}, or `clients` to be the number of samples of each, got "
                f"{self.num_samples}.",
            )

    def _check_range(self) -> None:
        """Check the limits of the samples; those of single entries become tensors."""
        if self.value_range is None:
            return
        given: Any = self.value_range
        shape, images = tuple(self.input_shape), len(self.input_shape) == 3
        try:
            low, high = (torch.as_tensor(limit, dtype=torch.float64).cpu() for limit in given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadInput(
                "Expected `value_range` to be the lowest and the highest value, two numbers or two "
                f"tensors, got {given!r:.60}."
            ) from error
        require(
            {tuple(low.shape), tuple(high.shape)} <= {(), shape},
            f"Expected two numbers as `value_range`, or two tensors of the shape {shape} of a "
            f"sample, got shapes {tuple(low.shape)} and {tuple(high.shape)}.",
        )
        finite = bool((low.isfinite() & high.isfinite()).all())
        text = f"{low:.4g} and {high:.4g}" if low.dim() == high.dim() == 0 else "others"
        require(
            bool((low < high).all()) and (finite or not images),
            "Expected the lowest and the highest value as `value_range`, finite ones of images, "
            f"got {text}.",
        )
        if low.dim() or high.dim():
            low, high = (limit.expand(shape) for limit in (low, high))
            object.__setattr__(self, "value_range", (low, high))

    def _settle_local_training(self) -> None:
        """Make the short arguments and ``local_training`` say the same."""
        own = {"learning_rate": "learning_rate", "local_steps": "steps", "batch_size": "batch_size"}
        facts, told = self.local_training or LocalTraining(), dict[str, Any]()
        for name, fact in own.items():
            value, known = getattr(self, name), getattr(facts, fact)
            require(
                value is None or known in (None, value),
                f"Expected `{name}` once, got {value} and {known} in `local_training`.",
            )
            if value is not None:
                told[fact] = value
        facts = replace(facts, **told)
        object.__setattr__(self, "local_training", facts)
        for name, fact in own.items():
            object.__setattr__(self, name, getattr(facts, fact))

    @property
    def local(self) -> LocalTraining:
        """The client's local training."""
        assert self.local_training is not None  # set by __post_init__
        return self.local_training

    @property
    def steps(self) -> int:
        """Number of optimiser steps of the update: 1 of a gradient; the most that a client took."""
        if self.protocol == "fedsgd":
            return 1
        if self.number_of_clients > 1:
            return max(part.steps for part in self.by_client)
        return self.local.steps or (self.local.epochs or 1) * len(self.local_batches)

    @property
    def mean_steps(self) -> float:
        """Number of optimiser steps, averaged over the clients as their updates are."""
        if self.number_of_clients == 1:
            return self.steps
        return sum(part.weight * part.steps for part in self.by_client)

    @property
    def total_steps(self) -> int:
        """Number of optimiser steps of all clients together."""
        return sum(part.steps for part in self.by_client)

    @property
    def is_one_step(self) -> bool:
        """Whether the update is that of one step of one client."""
        return self.number_of_clients == 1 and self.steps == 1

    @property
    def number_of_clients(self) -> int:
        """Number of clients whose updates came as one."""
        return len(self.clients) if isinstance(self.clients, tuple) else self.clients

    @property
    def client_samples(self) -> tuple[int, ...]:
        """Number of samples of each client."""
        if isinstance(self.clients, tuple):
            return self.clients
        return (self.num_samples // self.clients,) * self.clients

    @cached_property
    def by_client(self) -> list[ClientPart]:
        """What is known of each client; the weights of their updates add up to 1."""
        clients = self.number_of_clients
        if clients == 1:
            return [ClientPart(slice(0, self.num_samples), 1.0, tuple(self.local_batches), self)]
        parts, start = [], 0
        for samples in self.client_samples:
            own = slice(start, start + samples)
            labels = None if self.labels is None else self.labels[own]
            facts = replace(self, clients=1, num_samples=samples, labels=labels)
            if facts.steps == 1:
                facts = facts.with_training(steps=1, epochs=None, batch_size=None)
            weight = 1 / clients
            if self.aggregation == "weighted_mean" and self.num_samples:
                weight = samples / self.num_samples
            batches = tuple(
                slice(start + part.start, start + part.stop) for part in facts.local_batches
            )
            parts.append(ClientPart(own, weight, batches, facts))
            start += samples
        return parts

    def with_training(self, **facts: Any) -> Self:
        """The same knowledge with other facts of the local training.

        Args:
            facts: arguments of :class:`LocalTraining`.
        """
        return replace(
            self,
            local_training=replace(self.local, **facts),
            learning_rate=None, local_steps=None, batch_size=None,
        )  # fmt: skip

    @property
    def local_batches(self) -> list[slice]:
        """The samples of each local step of an epoch, in order, of one client after the other."""
        if self.number_of_clients > 1:
            return [batch for part in self.by_client for batch in part.batches]
        samples = max(1, self.num_samples)
        size = samples if self.batch_size is None else self.batch_size
        return [slice(at, min(at + size, samples)) for at in range(0, samples, size)]

    @property
    def epochs(self) -> int:
        """Number of complete local epochs; the most of a client."""
        if self.number_of_clients > 1:
            return max(part.epochs for part in self.by_client)
        return self.steps // len(self.local_batches)

    def of_samples(self, number: int) -> Self:
        """The knowledge about a client of the same federation with another number of samples.

        Args:
            number: its number of samples. If ``batch_size`` is known and ``local_steps``
                are complete epochs, ``local_steps`` is adjusted to the same number of epochs.
        """
        other = replace(self, num_samples=number)
        steps, batches = self.local.steps, len(self.by_client[0].batches)
        if self.batch_size is None or steps is None or steps % batches:
            return other
        return other.with_training(steps=steps // batches * len(other.by_client[0].batches))

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest valid input, normalised; infinite if none.

        Each ``(C, 1, ...)``, or of the shape of a sample where ``value_range`` has tensors.
        """
        shape = (-1, *[1] * (len(self.input_shape) - 1))
        mean, std = (
            torch.tensor(values, dtype=torch.float64).reshape(shape)
            for values in (self.mean, self.std)
        )
        images = len(self.input_shape) == 3
        low, high = self.value_range or ((0.0, 1.0) if images else (-math.inf, math.inf))
        return ((low - mean) / std).float(), ((high - mean) / std).float()

    def dummy_labels(self, number: int) -> Tensor:
        """Labels of the type and shape that the loss takes.

        Args:
            number: number of samples.
        """
        if self.labels is not None and self.labels.dim() and len(self.labels):
            shape = (number, *[-1] * (self.labels.dim() - 1))
            return (
                self.labels[:number]
                if len(self.labels) >= number
                else self.labels[:1].expand(shape)
            )
        if self.label_example is not None:
            return self.label_example[:1].expand(number, *[-1] * (self.label_example.dim() - 1))
        return torch.zeros(number, dtype=torch.long)
