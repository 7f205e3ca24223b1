"""ResNet-18 for small images, the modern case."""

from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from fedleak.models.bottleneck import ConvolutionalBottleneck, Precode
from fedleak.models.classifier import ImageClassifier

GROUPS = 32
FEATURES = 512


class ResNet18(ImageClassifier):
    """torchvision's ResNet-18 with a stem for small images; see :class:`ImageClassifier`.

    The stem is a 3x3 convolution of stride 1 without pooling, as He et al. (CVPR 2016, section 4.2)
    use it for CIFAR-10, so that images of 32x32 keep enough positions.

    Args:
        norm: batch: batch norm, whose statistics the server sees and an attack must be told how to
            treat (train or eval mode); group: group norm of 32 groups, which has none.
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
            # Behind the stem, where a ResNet for large images pools.
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
    """torchvision's block; its sum is not in place, which the hooks of Opacus (DP-SGD) forbid."""

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps of shape ``(batch, channels, height, width)``."""
        shortcut = images if self.downsample is None else self.downsample(images)
        inner = self.relu(self.bn1(self.conv1(images)))
        summed: Tensor = self.relu(self.bn2(self.conv2(inner)) + shortcut)
        return summed


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)
