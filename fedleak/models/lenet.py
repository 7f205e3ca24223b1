"""LeNet as the gradient-inversion literature uses it (PRECODE, WACV 2022, section 5)."""

from typing import ClassVar, Literal

from torch import nn

from fedleak.models.bottleneck import ConvolutionalBottleneck, Precode
from fedleak.models.classifier import ImageClassifier

CHANNELS = 12
STRIDES = (2, 2, 1)


class LeNet(ImageClassifier):
    """Three 5x5 convolutions of 12 channels with sigmoids; see :class:`ImageClassifier`."""

    activation: ClassVar[type[nn.Module]] = nn.Sigmoid

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        precode: Precode | None = None,
        optimizer: Literal["sgd", "adam"] = "sgd",
        learning_rate: float = 0.1,
    ) -> None:
        incoming, height, width = input_shape
        layers: list[nn.Module] = []
        for stride in STRIDES:
            layers += [
                nn.Conv2d(incoming, CHANNELS, kernel_size=5, padding=2, stride=stride),
                self.activation(),
            ]
            incoming = CHANNELS
            height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
            if precode is not None and precode.kind == "convolutional" and len(layers) == 2:
                layers.append(
                    ConvolutionalBottleneck(
                        CHANNELS, bottleneck_size=precode.bottleneck_size, beta=precode.beta
                    )
                )
        super().__init__(
            nn.Sequential(*layers, nn.Flatten()),
            CHANNELS * height * width,
            input_shape=input_shape,
            num_classes=num_classes,
            precode=precode,
            optimizer=optimizer,
            learning_rate=learning_rate,
        )


class LeNetR(LeNet):
    """LeNet with ReLU instead of the sigmoid; see :class:`LeNet`."""

    activation: ClassVar[type[nn.Module]] = nn.ReLU
