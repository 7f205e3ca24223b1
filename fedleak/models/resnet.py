"""ResNet-18 for small images."""

from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from fedleak.models.bottleneck import ConvolutionalBottleneck, Precode
from fedleak.models.classifier import ImageClassifier

GROUPS = 32
FEATURES = 512


class ResNet18(ImageClassifier):
    """torchvision's ResNet-18 with a stem for small images; see :class:`ImageClassifier`.

    The stem is a 3x3 convolution of stride 1 without pooling, as in He et al. (CVPR 2016, section
    4.2) for CIFAR-10, so that images of 32x32 keep enough resolution.

    Args:
        norm: ``batch``: batch normalisation, whose running statistics are sent to the server; the
            attack must know whether the client trained in train or eval mode. ``group``: group
            normalisation with 32 groups, without running statistics.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        norm: Literal["batch", "group"] = "batch",
        precode: Precode | None = None,
        optimizer: Literal["sgd", "adam"] = "sgd",
        learning_rate: float = 0.1,
    ) -> None:
        layer = nn.BatchNorm2d if norm == "batch" else _group_norm
        network = ResNet(_Block, [2, 2, 2, 2], norm_layer=layer)
        network.conv1 = nn.Conv2d(input_shape[0], 64, kernel_size=3, padding=1, bias=False)
        network.maxpool = nn.Identity()
        if precode is not None and precode.kind == "convolutional":
            # After the stem, in the place of the pooling layer for large images.
            network.maxpool = ConvolutionalBottleneck(
                64, bottleneck_size=precode.bottleneck_size, beta=precode.beta
            )
        network.fc = nn.Identity()
        super().__init__(
            network,
            FEATURES,
            input_shape=input_shape,
            num_classes=num_classes,
            precode=precode,
            optimizer=optimizer,
            learning_rate=learning_rate,
        )


class _Block(BasicBlock):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's block without its in-place sum, which Opacus' hooks (DP-SGD) do not allow."""

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps of shape ``(batch, channels, height, width)``."""
        shortcut = images if self.downsample is None else self.downsample(images)
        inner = self.relu(self.bn1(self.conv1(images)))
        summed: Tensor = self.relu(self.bn2(self.conv2(inner)) + shortcut)
        return summed


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)
