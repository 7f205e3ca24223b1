"""A perceptron that predicts one number, for tables whose target is a number."""

import math
from itertools import pairwise
from typing import Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.errors import require

Batch = tuple[Tensor, Tensor]


class Regressor(pl.LightningModule):
    """Two hidden layers with ReLU and one output, trained with the mean squared error.

    Args:
        input_shape: shape of a sample, taken from the data set.
        num_classes: 1, as there are no classes; taken from the data set.
        width: number of units of each hidden layer, at least 1.
        optimizer: the optimiser of a client's local training.
        learning_rate: its learning rate, positive.

    Raises:
        BadInput: if a value is out of its range, or the target has classes.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int = 1,
        width: int = 64,
        optimizer: Literal["sgd", "adam"] = "sgd",
        learning_rate: float = 0.01,
    ) -> None:
        super().__init__()
        require(width >= 1, f"Expected `model.width` to be at least 1, got {width}.")
        require(
            learning_rate > 0,
            f"Expected `model.learning_rate` to be positive, got {learning_rate}.",
        )
        require(
            num_classes == 1,
            f"Expected a target of numbers for a regression, got {num_classes} classes: choose a "
            "classifier, such as smlp.",
        )
        self.input_shape = tuple(input_shape)
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        layers: list[nn.Module] = [nn.Flatten()]
        for incoming, outgoing in pairwise((math.prod(input_shape), width, width)):
            layers += [nn.Linear(incoming, outgoing), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Predictions ``(batch,)`` of samples ``(batch, ...)``."""
        predictions: Tensor = self.layers(inputs)
        return predictions.squeeze(1)

    def batch_loss(self, batch: Batch) -> Tensor:
        """The mean squared error of a batch of samples and targets ``(batch,)``.

        Raises:
            ValueError: if the targets are whole numbers, as classes are.
        """
        inputs, targets = batch
        if not targets.is_floating_point():
            raise ValueError(f"Expected targets as real numbers, got {targets.dtype}.")
        return functional.mse_loss(self(inputs), targets)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One training step: the loss, which is logged."""
        return self._shared_step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the loss."""
        self._shared_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the loss."""
        self._shared_step(batch, "test")

    def _shared_step(self, batch: Batch, stage: str) -> Tensor:
        loss = self.batch_loss(batch)
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[1]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The local optimiser, without momentum or weight decay."""
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.SGD
        return kind(self.parameters(), lr=self.learning_rate)
