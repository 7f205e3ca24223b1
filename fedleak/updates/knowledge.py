"""What the server knows besides the update itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from fedleak.errors import BadInput, require

Protocol = Literal["fedsgd", "fedavg"]
LabelRecovery = Literal["bias_counts", "idlg", "row_minima"]


def batch_loss(model: nn.Module, batch: Any) -> Tensor:
    """The scalar loss that a client differentiates: what a model has to offer to be attacked.

    A module with a method ``batch_loss(batch)`` is asked for that; any other LightningModule is
    asked for ``training_step(batch, 0)``, which may return the loss or a mapping with ``"loss"``.

    Args:
        model: the module.
        batch: what the module's data loader yields, such as ``(images, labels)``.

    Raises:
        BadInput: if the module offers neither, or no loss comes back.
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
    """What the server knows besides the update itself.

    Args:
        model: the architecture; an attack loads the weights that were sent into a copy of it.
        input_shape: shape of one sample, such as ``(C, H, W)``.
        num_classes: number of classes.
        mean: the data set's mean of each channel, as the clients normalise with it.
        std: the deviation of each channel.
        num_samples: number of samples that the gradient was computed from. If 0, as many as there
            are ``labels``, or as the update says; what it was is then among the findings.
        labels: the samples' labels ``(num_samples,)`` if they are known.
        protocol: ``fedsgd`` (a gradient came) or ``fedavg`` (weights came).
        learning_rate: learning rate of the client's local training.
        local_steps: number of local optimiser steps.
        batch_size: number of samples of a local step, the last one of an epoch having what is left;
            none: not known, which is of no matter for one step or one sample.
        plain_sgd: whether the client's optimiser is SGD without momentum, weight decay or a
            schedule.
        training: whether the client's model was in train mode (dropout on, batch norm using the
            batch's own statistics) or in eval mode.
        loss: the loss of a batch, given model and batch.
        label_recovery: how an attack finds labels that are not known; see
            :mod:`fedleak.attacks.labels`.

    Raises:
        BadInput: if a number is below 1.
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
        for name in ("local_steps", "batch_size"):
            value = getattr(self, name)
            require(
                value is None or value >= 1, f"Expected `{name}` to be at least 1, got {value}."
            )

    @property
    def local_batches(self) -> list[slice]:
        """The samples of each local step of an epoch, in the order in which they are used."""
        samples = max(1, self.num_samples)
        size = samples if self.batch_size is None else self.batch_size
        return [slice(at, min(at + size, samples)) for at in range(0, samples, size)]

    @property
    def epochs(self) -> int:
        """Number of whole local epochs."""
        return self.local_steps // len(self.local_batches)

    def of_samples(self, number: int) -> Self:
        """What is known of a client of the same federation with so many samples.

        Args:
            number: number of its samples; of a known ``batch_size`` and whole epochs, its steps are
                as many more or less as it takes to go through them as often.
        """
        other = replace(self, num_samples=number)
        if self.batch_size is None or self.local_steps % len(self.local_batches):
            return other
        return replace(other, local_steps=self.epochs * len(other.local_batches))

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest valid input (pixel 0 and pixel 1, normalised), ``(C, 1, 1)`` each."""
        shape = (-1, *[1] * (len(self.input_shape) - 1))
        mean, std = torch.tensor(self.mean).reshape(shape), torch.tensor(self.std).reshape(shape)
        return -mean / std, (1 - mean) / std
