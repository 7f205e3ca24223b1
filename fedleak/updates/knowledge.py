"""The server's prior knowledge about a client's training, besides the update itself."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from fedleak.errors import BadInput, require

Protocol = Literal["fedsgd", "fedavg"]
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
        num_classes: number of classes.
        mean: mean of each channel with which the clients normalise their data.
        std: standard deviation of each channel.
        num_samples: number of samples that the gradient was computed from. If 0, it is the number
            of ``labels``, or else taken from the update; the findings then say which number it is.
        labels: the samples' labels ``(num_samples,)``. If None, they are not known.
        protocol: ``fedsgd`` (the update is a gradient) or ``fedavg`` (the update is weights).
        learning_rate: learning rate of the client's local training.
        local_steps: number of local optimiser steps.
        batch_size: number of samples in a local step; the last step of an epoch takes the rest. If
            None, it is not known, which matters only for several steps on several samples.
        plain_sgd: whether the client's optimiser is SGD without momentum, weight decay or a
            learning rate schedule.
        training: whether the client's model was in train mode (dropout on, batch norm using the
            batch's statistics) or in eval mode.
        loss: the loss of a batch, given model and batch.
        label_recovery: how an attack recovers unknown labels; see :mod:`fedleak.attacks.labels`.

    Raises:
        BadInput: if ``num_samples`` is negative, or ``local_steps`` or ``batch_size`` is below 1.
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    num_samples: int = 0
    labels: Tensor | None = None
    protocol: Protocol = "fedsgd"
    learning_rate: float = 0.1
    local_steps: int = 1
    batch_size: int | None = None
    plain_sgd: bool = True
    training: bool = True
    loss: Callable[[nn.Module, Any], Tensor] = field(default=batch_loss)
    label_recovery: LabelRecovery = "bias_counts"

    def __post_init__(self) -> None:
        require(
            self.num_samples >= 0,
            f"Expected `num_samples` to be at least 1, got {self.num_samples}.",
        )
        require(
            0 < self.learning_rate < math.inf,
            f"Expected `learning_rate` to be positive, got {self.learning_rate}.",
        )
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
        for name in ("local_steps", "batch_size"):
            value = getattr(self, name)
            require(
                value is None or value >= 1, f"Expected `{name}` to be at least 1, got {value}."
            )

    @property
    def local_batches(self) -> list[slice]:
        """The samples of each local step of an epoch, in order."""
        samples = max(1, self.num_samples)
        size = samples if self.batch_size is None else self.batch_size
        return [slice(at, min(at + size, samples)) for at in range(0, samples, size)]

    @property
    def epochs(self) -> int:
        """Number of complete local epochs."""
        return self.local_steps // len(self.local_batches)

    def of_samples(self, number: int) -> Self:
        """The knowledge about a client of the same federation with another number of samples.

        Args:
            number: the client's number of samples. If ``batch_size`` is known and ``local_steps``
                are complete epochs, ``local_steps`` is adjusted to the same number of epochs.
        """
        other = replace(self, num_samples=number)
        if self.batch_size is None or self.local_steps % len(self.local_batches):
            return other
        return replace(other, local_steps=self.epochs * len(other.local_batches))

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest valid input (pixel values 0 and 1, normalised), each ``(C, 1, 1)``."""
        shape = (-1, *[1] * (len(self.input_shape) - 1))
        mean, std = torch.tensor(self.mean).reshape(shape), torch.tensor(self.std).reshape(shape)
        return -mean / std, (1 - mean) / std
