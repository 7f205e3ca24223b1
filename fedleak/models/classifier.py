"""The LightningModule that all image classifiers share: loss, metrics, optimiser, bottleneck."""

from collections.abc import Mapping
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_accuracy

from fedleak.errors import require
from fedleak.models.bottleneck import (
    Bottleneck,
    Precode,
    VariationalBottleneck,
    bottleneck_suffix,
    kl_penalty,
)

Batch = tuple[Tensor, Tensor]


class ImageClassifier(pl.LightningModule):
    """Images -> features -> (PRECODE) -> linear classifier, trained with cross entropy.

    A subclass passes the module that computes the features. The loss is
    ``cross entropy + beta * KL``; the second term is 0 without a bottleneck.

    Args:
        features: maps images ``(batch, C, H, W)`` to features ``(batch, num_features)``.
        num_features: number of features.
        input_shape: ``(C, H, W)``, or the shape of samples that are no images, taken from the data
            set.
        num_classes: number of classes, taken from the data set.
        precode: settings of the bottleneck before the classifier. If None, there is no bottleneck.
            A subclass places a convolutional bottleneck in its features.
        optimizer: the optimiser of a client's local training.
        learning_rate: its learning rate, positive.

    Raises:
        BadInput: if a value is out of its range.
    """

    def __init__(
        self,
        features: nn.Module,
        num_features: int,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        precode: Precode | None,
        optimizer: Literal["sgd", "adam"],
        learning_rate: float,
    ) -> None:
        super().__init__()
        require(
            learning_rate > 0,
            f"Expected `model.learning_rate` to be positive, got {learning_rate}.",
        )
        require(num_classes >= 2, f"Expected at least 2 classes, got {num_classes}.")
        self.input_shape = tuple(input_shape)
        self.num_classes = num_classes
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.features = features
        self.bottleneck: nn.Module = nn.Identity()
        if precode is not None and precode.kind == "linear":
            self.bottleneck = VariationalBottleneck(
                num_features, bottleneck_size=precode.bottleneck_size, beta=precode.beta
            )
        self.classifier = nn.Linear(num_features, num_classes)

    @classmethod
    def label(cls, name: str, settings: Mapping[str, Any]) -> str:
        """The model's name in tables, with its bottleneck's, such as ``smlp+precode``.

        Args:
            name: the model's short name.
            settings: the constructor's arguments as plain values.
        """
        return f"{name}{bottleneck_suffix(settings.get('precode'))}"

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(batch, num_classes)`` of normalised images ``(batch, C, H, W)``.

        Raises:
            ValueError: if the images have another shape than the model was made for.
        """
        if tuple(images.shape[1:]) != self.input_shape:
            raise ValueError(
                f"Expected images of shape {self.input_shape}, got {tuple(images.shape[1:])}."
            )
        logits: Tensor = self.classifier(self.bottleneck(self.features(images)))
        return logits

    def batch_loss(self, batch: Batch) -> Tensor:
        """The scalar loss of a batch of images ``(batch, C, H, W)`` and labels ``(batch,)``."""
        images, labels = batch
        return functional.cross_entropy(self(images), labels) + kl_penalty(self)

    def _shared_step(self, batch: Batch, stage: str) -> Tensor:
        images, labels = batch
        logits = self(images)
        penalty = kl_penalty(self)
        loss = functional.cross_entropy(logits, labels) + penalty
        accuracy = multiclass_accuracy(
            logits, labels, num_classes=self.num_classes, average="micro"
        )
        values = {f"{stage}/loss": loss, f"{stage}/accuracy": accuracy}
        if any(isinstance(module, Bottleneck) for module in self.modules()):
            values[f"{stage}/kl"] = penalty
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One training step: the loss, with loss, accuracy and KL term logged."""
        return self._shared_step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs loss and accuracy."""
        self._shared_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs loss and accuracy."""
        self._shared_step(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The local optimiser, without momentum or weight decay."""
        if self.optimizer == "adam":
            return torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)
