"""Multilayer perceptrons with ReLU (PRECODE, WACV 2022, section 5)."""

import math
from itertools import pairwise
from typing import ClassVar, Literal

from torch import nn

from fedleak.errors import require
from fedleak.models.bottleneck import Precode
from fedleak.models.classifier import ImageClassifier


class SMLP(ImageClassifier):
    """The shallow perceptron: two hidden layers; see :class:`ImageClassifier`.

    Args:
        width: number of units of each hidden layer, at least 1.
    """

    hidden_layers: ClassVar[int] = 2

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        width: int = 1024,
        precode: Precode | None = None,
        optimizer: Literal["sgd", "adam"] = "sgd",
        learning_rate: float = 0.1,
    ) -> None:
        require(width >= 1, f"Expected `model.width` to be at least 1, got {width}.")
        require(
            precode is None or precode.kind == "linear",
            f"Expected `precode.kind: linear` for {type(self).__name__}, which has no "
            "convolutions, got convolutional.",
        )
        sizes = (math.prod(input_shape), *[width] * self.hidden_layers)
        layers: list[nn.Module] = [nn.Flatten()]
        for incoming, outgoing in pairwise(sizes):
            layers += [nn.Linear(incoming, outgoing), nn.ReLU()]
        super().__init__(
            nn.Sequential(*layers),
            width,
            input_shape=input_shape,
            num_classes=num_classes,
            precode=precode,
            optimizer=optimizer,
            learning_rate=learning_rate,
        )


class DMLP(SMLP):
    """The deep perceptron: four hidden layers; see :class:`SMLP`."""

    hidden_layers: ClassVar[int] = 4
