"""What a client's model is at its first batch, compared with what Lightning then does."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from fedleak.errors import BadInput
from fedleak.models.first_batch import FirstBatch, first_batch
from fedleak.models.lightning import quiet_trainer

SAMPLES, BATCH, EPOCHS = 8, 3, 3


class Net(pl.LightningModule):
    """A frozen part in eval mode, a head that trains; the subclasses say how."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)
        self.seen: list[tuple[float, dict[str, bool]]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        rate = self.optimizers().param_groups[0]["lr"]
        self.seen.append((rate, {n: m.training for n, m in self.named_modules()}))
        return functional.cross_entropy(self.head(self.body(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3)


class FitStart(Net):
    def on_train_start(self) -> None:
        self.body.eval()


class EpochStart(Net):
    def on_train_epoch_start(self) -> None:
        self.body[1].eval()


class BatchStart(Net):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.body.eval()


class Overridden(Net):
    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.body.eval()
        return self


class PerStep(Net):
    def configure_optimizers(self) -> Any:
        found = torch.optim.SGD(self.parameters(), lr=0.3)
        total = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(found, lambda step: 1 - step / total)
        return {"optimizer": found, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class EverySecond(Net):
    """Lightning counts the batches of an epoch anew."""

    def configure_optimizers(self) -> Any:
        found = torch.optim.SGD(self.parameters(), lr=0.3)
        schedule = torch.optim.lr_scheduler.ExponentialLR(found, 0.5)
        entry = {"scheduler": schedule, "interval": "step", "frequency": 2}
        return {"optimizer": found, "lr_scheduler": entry}


class PerEpoch(Net):
    def configure_optimizers(self) -> Any:
        found = torch.optim.SGD(self.parameters(), lr=0.3)
        return [found], [torch.optim.lr_scheduler.StepLR(found, 1, gamma=0.1)]


class WarmUp(Net):
    def configure_optimizers(self) -> Any:
        found = torch.optim.SGD(self.parameters(), lr=0.3)
        schedule = torch.optim.lr_scheduler.LinearLR(found, 0.1, total_iters=4)
        return {"optimizer": found, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def found_of(model: pl.LightningModule, **changes: Any) -> FirstBatch:
    settings = {"train": True, "samples": SAMPLES, "batch_size": BATCH, "epochs": EPOCHS}
    return first_batch(model, (3,), **settings | changes)


def fitted(model: Net, *, train: bool) -> Net:
    samples = [(torch.randn(3), index % 2) for index in range(SAMPLES)]
    trainer = quiet_trainer(model.train(train), max_epochs=EPOCHS)
    trainer.fit(model, train_dataloaders=DataLoader(samples, batch_size=BATCH))
    return model


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "kind",
    [Net, FitStart, EpochStart, BatchStart, Overridden, PerStep, EverySecond, PerEpoch, WarmUp],
)
def test_it_is_what_the_client_then_has(kind: type[Net], train: bool) -> None:
    found = found_of(kind(), train=train)
    rates, modes = zip(*fitted(kind(), train=train).seen, strict=True)
    assert found.modes == modes[0]
    assert found.training.optimizer == "sgd"
    assert found.training.steps == len(rates) == 9
    assert [found.training.rate_at(step) for step in range(9)] == pytest.approx(rates)
    if (kind, train) in ((Net, True), (Overridden, True)):
        assert found.modes["body.1"] == (kind is Net)


def test_the_model_is_left_alone_and_takes_the_modes() -> None:
    model = EpochStart().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = found_of(model)
    assert not model.training
    assert model._trainer is None
    assert "training_step" not in vars(model)
    assert model.seen == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    found.set_on(model)
    assert (model.training, model.head.training, model.body[1].training) == (True, True, False)
    assert found_of(model) is found


class Groups(Net):
    def configure_optimizers(self) -> Any:
        groups = [{"params": self.body.parameters()}, {"params": self.head.bias, "lr": 0.01}]
        return torch.optim.AdamW(groups, lr=0.1, weight_decay=0.2)


def test_groups_and_parameters_that_no_optimiser_holds() -> None:
    model = Groups()
    found = found_of(model)
    assert found.training.optimizer == "adamw"
    assert found.training.of("body.0.weight").rate == 0.1
    assert found.training.of("head.bias").rate == 0.01
    assert found.untrained == {"head.weight"}
    found.set_on(model)
    assert [name for name, v in model.named_parameters() if not v.requires_grad] == ["head.weight"]


class Plateau(Net):
    def configure_optimizers(self) -> Any:
        found = torch.optim.SGD(self.parameters(), lr=0.3)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(found)
        return {"optimizer": found, "lr_scheduler": schedule, "monitor": "loss"}


class Momentum(Net):
    def configure_optimizers(self) -> Any:
        found = torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(found, 0.3, total_steps=20)
        return {"optimizer": found, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class OwnStep(Net):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)


class Several(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        parts = (self.body, self.head)
        return [torch.optim.SGD(part.parameters(), lr=0.3) for part in parts]


@pytest.mark.parametrize("kind", [Plateau, Momentum, OwnStep, Several])
def test_what_cannot_be_known(kind: type[Net]) -> None:
    found = found_of(kind()).training
    assert found.optimizer == "unknown"
    assert found.rate > 0


class Broken(Net):
    def on_train_start(self) -> None:
        raise KeyError("no such thing")


class NoOptimizer(Net):
    def configure_optimizers(self) -> None:
        return None


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Broken, "Broken fails before its first batch: 'no such thing'"),
        (NoOptimizer, "`configure_optimizers` of NoOptimizer to return an optimiser, got none"),
    ],
)
def test_a_hook_that_fails_is_a_sentence(kind: type[Net], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        found_of(kind())


class Watches(Net):
    """The hooks look at gradients and weights and leave them as they are."""

    def on_after_backward(self) -> None:
        self.log("norm", max(float(v.grad.norm()) for v in self.parameters()))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.log("largest", max(float(v.grad.abs().max()) for v in self.parameters()))

    def configure_gradient_clipping(self, optimizer: Any, *_args: Any, **_kwargs: Any) -> None:
        pass

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("loss", outputs["loss"])


class Clips(Net):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 5.0)


class ClipsByLightning(Net):
    def configure_gradient_clipping(self, optimizer: Any, *_args: Any, **_kwargs: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=5.0, gradient_clip_algorithm="norm")


class AddsNoise(Net):
    def on_after_backward(self) -> None:
        for value in self.parameters():
            value.grad += 0.01 * torch.randn_like(value)


class ClampsWeights(Net):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for value in self.parameters():
            value.data.clamp_(-0.01, 0.01)


class ClampsBefore(Net):
    def on_before_zero_grad(self, optimizer: Any) -> None:
        for value in self.parameters():
            value.data.clamp_(-0.01, 0.01)


class StepHook(Net):
    def configure_optimizers(self) -> Any:
        found = torch.optim.SGD(self.parameters(), lr=0.3)
        found.register_step_post_hook(self._clamp)
        return found

    def _clamp(self, *_args: Any) -> None:
        for value in self.parameters():
            value.data.clamp_(-0.01, 0.01)


class GradientHook(Net):
    def on_fit_start(self) -> None:
        self.head.weight.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))


@pytest.mark.parametrize("epochs", [None, EPOCHS])
@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        (Watches, "sgd"), (Clips, "unknown"), (ClipsByLightning, "unknown"),
        (StepHook, "unknown"), (GradientHook, "unknown"), (AddsNoise, "unknown"),
        (ClampsWeights, "unknown"), (ClampsBefore, "unknown"),
    ],
)  # fmt: skip
def test_hooks_that_change_the_step(kind: type[Net], optimizer: str, epochs: int | None) -> None:
    """They are told from hooks that only look at gradients, without the client's data."""
    model = kind()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert found_of(model, epochs=epochs).training.optimizer == optimizer
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
