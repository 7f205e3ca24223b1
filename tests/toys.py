"""Modules that a user might bring, small enough to compute by hand or by plain autograd."""

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.models import Precode, VariationalBottleneck, kl_penalty


class OwnClassifier(pl.LightningModule):
    """A user's own module: no ``batch_loss``, only the ``training_step`` that Lightning wants."""

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        precode: Precode | None = None,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        features = 6 * ((height + 1) // 2) * ((width + 1) // 2)
        self.stem = nn.Conv2d(channels, 6, kernel_size=3, stride=2, padding=1)
        self.hidden = nn.Linear(features, 10, bias=False)
        self.guard = nn.Identity() if precode is None else VariationalBottleneck(
            10, bottleneck_size=precode.bottleneck_size, beta=precode.beta
        )  # fmt: skip
        self.head = nn.Linear(10, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.guard(self.hidden(self.stem(images).tanh().flatten(1)).tanh()))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        images, labels = batch
        loss = functional.cross_entropy(self(images), labels) + kl_penalty(self)
        self.log("loss", loss)
        return {"loss": loss}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Linear(nn.Module):
    """``W x`` and cross entropy: whose gradient is (softmax - one-hot) x^T."""

    def __init__(self, incoming: int = 3, outgoing: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(incoming, outgoing, bias=False)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.layer(batch[0]), batch[1])


class Normalised(nn.Module):
    """Convolution and batch norm, the layer whose mode and buffers matter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 6 * 6, 3)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        features = self.norm(self.conv(batch[0])).sigmoid().flatten(1)
        return functional.cross_entropy(self.head(features), batch[1])
