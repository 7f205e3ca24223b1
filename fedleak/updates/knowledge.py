"""The server's prior knowledge about a client's training, besides the update itself."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from fedleak.errors import BadInput, require, unknown_name
from fedleak.updates.local_training import LocalTraining

Protocol = Literal["fedsgd", "fedavg", "delta"]
LabelRecovery = Literal["bias_counts", "idlg", "row_minima"]


def batch_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a client differentiates.

    It is ``model.batch_loss(batch)`` if the module has such a method, otherwise the result of
    ``model.training_step(batch, 0)``: the loss, or a mapping with ``"loss"``.

    Args:
        model: the module.
        batch: a batch of the module's data loader, such as ``(images, labels)``.

    Returns:
        The loss, a scalar tensor.

    Raises:
        BadInput: if the module has neither method, or the result is not a scalar tensor.
    """
    method = getattr(model, "batch_loss", None)
    if method is None:
        step = getattr(model, "training_step", None)
        if step is None:
            raise BadInput(
                f"Expected {type(model).__name__} to have `batch_loss(batch)` or "
                "`training_step(batch, batch_idx)`, got a module with neither."
            )
        result = step(batch, 0)
    else:
        result = method(batch)
    loss = result["loss"] if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        raise BadInput(
            f"Expected the loss of {type(model).__name__} to be a scalar tensor, "
            f"got {type(loss).__name__}."
        )
    return loss


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
        num_samples: number of samples that the gradient was computed from. If 0, it is the number
            of ``labels``, or else taken from the update; the findings then say which number it is.
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
            keeps to; either may be infinite. If None, 0 and 1 of images ``(C, H, W)``, and no
            limits of other samples.
        label_example: labels ``(1, ...)`` of the type and shape that the loss takes. If None, and
            the labels are not known, an attack finds it out by calling the loss.

    Raises:
        BadInput: if a value is out of its range, the protocol is none of the three, or a fact of
            the local training is given twice with different values.
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
    value_range: tuple[float, float] | None = None
    label_example: Tensor | None = None

    def __post_init__(self) -> None:
        require(
            self.num_samples >= 0,
            f"Expected `num_samples` to be at least 1, got {self.num_samples}.",
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
        if self.value_range is not None:
            low, high = self.value_range
            require(
                low < high and (len(shape) != 3 or (math.isfinite(low) and math.isfinite(high))),
                "Expected the lowest and the highest value as `value_range`, finite ones of "
                f"images, got {low} and {high}.",
            )
        require(
            self.num_classes is None or self.num_classes >= 1,
            f"Expected `num_classes` to be at least 1, got {self.num_classes}.",
        )
        self._settle_local_training()

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
        """Number of optimiser steps of the update: 1 of a gradient."""
        if self.protocol == "fedsgd":
            return 1
        return self.local.steps or (self.local.epochs or 1) * len(self.local_batches)

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
        """The samples of each local step of an epoch, in order."""
        samples = max(1, self.num_samples)
        size = samples if self.batch_size is None else self.batch_size
        return [slice(at, min(at + size, samples)) for at in range(0, samples, size)]

    @property
    def epochs(self) -> int:
        """Number of complete local epochs."""
        return self.steps // len(self.local_batches)

    def of_samples(self, number: int) -> Self:
        """The knowledge about a client of the same federation with another number of samples.

        Args:
            number: the client's number of samples. If ``batch_size`` is known and ``local_steps``
                are complete epochs, ``local_steps`` is adjusted to the same number of epochs.
        """
        other = replace(self, num_samples=number)
        steps, batches = self.local.steps, len(self.local_batches)
        if self.batch_size is None or steps is None or steps % batches:
            return other
        return other.with_training(steps=steps // batches * len(other.local_batches))

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest valid input, normalised, each ``(C, 1, ...)``; infinite if none."""
        shape = (-1, *[1] * (len(self.input_shape) - 1))
        mean, std = torch.tensor(self.mean).reshape(shape), torch.tensor(self.std).reshape(shape)
        images = len(self.input_shape) == 3
        low, high = self.value_range or ((0.0, 1.0) if images else (-math.inf, math.inf))
        return (low - mean) / std, (high - mean) / std

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
