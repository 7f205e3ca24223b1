"""Modules as a user might bring them, named by dotted path; Ray's workers import them too."""

import math
import os
import signal
import sys
import time

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

RAISES, SLEEPS, IGNORES_SIGNALS = 0, 1, 2


class OnlyTrainingStep(pl.LightningModule):
    """The minimum that Lightning requires: a training step and an optimiser."""

    def __init__(self, *, side: int = 8, num_classes: int = 4, learning_rate: float = 0.1) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(side * side, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return functional.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


class ChangingItsGradient(OnlyTrainingStep):
    """Halves the gradient once in each hook, before and within the step."""

    def on_after_backward(self) -> None:
        self._halve()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._halve()

    def configure_gradient_clipping(self, *_args: object, **_settings: object) -> None:
        self._halve()

    def _halve(self) -> None:
        for value in self.parameters():
            assert value.grad is not None
            value.grad /= 2


class ByHand(ChangingItsGradient):
    """Two parts with an optimiser each, and steps made by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.batch_loss(batch))
        for optimizer in self.optimizers():
            optimizer.step()

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam([value], lr=0.1) for value in self.parameters()]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for value in group["params"]:
                value.grad /= 4


class FailingByClass(OnlyTrainingStep):
    """Fails for clients whose samples are of certain classes."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if isinstance(self._trainer, pl.Trainer):  # in a client, not in an attack
            label = int(batch[1][0])
            if label == RAISES:
                raise RuntimeError("the camera is broken")
            if label == SLEEPS:
                time.sleep(600)
            if label == IGNORES_SIGNALS:
                _ignore_exceptions(600)
        return super().training_step(batch, batch_idx)


class DyingByClass(OnlyTrainingStep):
    """Takes its process with it, for the client of one class."""

    def __init__(self, *, how: str = "segfault") -> None:
        super().__init__()
        self.how = how

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if isinstance(self._trainer, pl.Trainer) and int(batch[1][0]) == RAISES:
            if self.how == "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif self.how == "sys.exit":
                sys.exit(3)
            os._exit(0)
        return super().training_step(batch, batch_idx)


class Broken(OnlyTrainingStep):
    """Raises an exception for one client."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if isinstance(self._trainer, pl.Trainer) and int(batch[1][0]) == RAISES:
            raise RuntimeError("the camera is broken")
        return super().training_step(batch, batch_idx)


class Diverging(OnlyTrainingStep):
    """Its loss is NaN for one client, and finite in the check before the run."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if isinstance(self._trainer, pl.Trainer) and int(batch[1][0]) == RAISES:
            return loss * float("nan")
        return loss


class LossOfNan(OnlyTrainingStep):
    """Is trained as usual, but its loss on the test set is NaN."""

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test_loss", torch.tensor(float("nan")), batch_size=len(batch[1]))


class Slow(OnlyTrainingStep):
    """Sleeps in every step."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if isinstance(self._trainer, pl.Trainer):
            time.sleep(0.3)
        return super().training_step(batch, batch_idx)


class Normalising(OnlyTrainingStep):
    """With batch norm and dropout, so that train and eval mode differ."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 3, kernel_size=3),
            nn.BatchNorm2d(3),
            nn.Sigmoid(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(3 * 6 * 6, 4),
        )

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        hits = (self(images).argmax(dim=1) == labels).float().mean()
        self.log("test_acc", hits, batch_size=len(labels))


class Unbiased(OnlyTrainingStep):
    """A classifier whose labels cannot be recovered from the gradient of its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False))


class IncompatibleLayers(OnlyTrainingStep):
    """Two layers of incompatible sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(6, 4))


def _ignore_exceptions(seconds: float) -> None:
    """Sleeps on through exceptions, as a call that never comes back to Python would."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(end - time.monotonic())
        except BaseException:
            continue


class Tied(pl.LightningModule):
    """Two layers of one weight, called by keyword, in modules with a slash in their names."""

    def __init__(self, *, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        size = math.prod(input_shape)
        self.layers = nn.ModuleDict({"in/1": nn.Linear(size, size), "in/2": nn.Linear(size, size)})
        self.layers["in/2"].weight = self.layers["in/1"].weight
        self.head = nn.Linear(size, num_classes)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        hidden = self.layers["in/1"](input=batch[0].flatten(1)).tanh()
        return functional.cross_entropy(self.head(self.layers["in/2"](hidden)), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)
