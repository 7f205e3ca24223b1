"""What a module does around its optimiser's steps, each named, and nothing where it only looks."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import StochasticWeightAveraging
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from fedleak.models.first_batch import first_batch
from fedleak.models.lightning import quiet_trainer
from fedleak.models.step_hooks import has_hooks, overrides, tried_hooks

EPOCHS, SAMPLES, BATCH = 4, 6, 2


class Net(pl.LightningModule):
    """A frozen part and a head that trains; the subclasses say what else happens."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 2)
        self.outputs: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = functional.cross_entropy(self.head(self.body(batch[0])), batch[1])
        self.outputs.append(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3)

    def halve(self) -> None:
        with torch.no_grad():
            for value in self.head.parameters():
                value.mul_(0.5)


class AveragesAtTheEnd(Net):
    """An exponential moving average that is taken for the weights when the training ends."""

    def on_train_start(self) -> None:
        self.mean = {n: v.detach().clone() for n, v in self.named_parameters()}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for name, value in self.named_parameters():
            self.mean[name].lerp_(value.detach(), 0.1)

    def on_train_end(self) -> None:
        self.load_state_dict(self.mean)


class ClampsAfterEpochs(Net):
    def on_train_epoch_end(self) -> None:
        for value in self.head.parameters():
            value.data.clamp_(-0.01, 0.01)


class ClampsLate(Net):
    def on_train_epoch_end(self) -> None:
        if self.current_epoch == EPOCHS - 1:
            self.halve()


class BeginsAnew(Net):
    def on_fit_start(self) -> None:
        self.halve()


class BeginsEpochsAnew(Net):
    def on_train_epoch_start(self) -> None:
        self.halve()


class Tenth(Net):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step == 10:
            self.halve()


class StepsInTheTrainingStep(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.halve()
        return super().training_step(batch, batch_idx)

    def on_train_start(self) -> None:
        pass


class Averaged(Net):
    def configure_callbacks(self) -> Any:
        return [StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)]


class Accumulates(Net):
    def on_train_start(self) -> None:
        self.trainer.accumulate_grad_batches = 2


class Keeps(Net):
    """It does not clear the gradients."""

    def optimizer_zero_grad(self, *_arguments: Any) -> None:
        pass


class Clips(Net):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 5.0)


class FollowsFrozen(Net):
    """A teacher that follows: frozen weights, on which later steps depend."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.body.weight.data.mul_(0.9)


class Fails(Net):
    def on_train_epoch_end(self) -> None:
        raise KeyError("what the client's own data would have set")


class Collects(Net):
    """The mean of what the training steps have kept, as many modules log it."""

    def on_train_epoch_end(self) -> None:
        self.log("mean", torch.stack(self.outputs).mean())
        self.outputs.clear()


class Freezes(Net):
    """Flags that are set before the first batch are no steps."""

    def on_fit_start(self) -> None:
        self.head.bias.requires_grad_(False)


class Looks(Net):
    def on_train_end(self) -> None:
        self.size = float(self.head.weight.norm())

    def on_after_backward(self) -> None:
        self.log("norm", self.head.weight.grad.norm())

    def optimizer_zero_grad(self, *arguments: Any) -> None:
        super().optimizer_zero_grad(*arguments)


SAYS: dict[type[Net], str | None] = {
    Net: None,
    Collects: None,
    Freezes: None,
    Looks: None,
    AveragesAtTheEnd: "`on_train_end` of AveragesAtTheEnd changes the weights",
    ClampsAfterEpochs: "`on_train_epoch_end` of ClampsAfterEpochs changes the weights",
    ClampsLate: "`on_train_epoch_end` of ClampsLate changes the weights",
    BeginsAnew: "`on_fit_start` of BeginsAnew changes the weights",
    BeginsEpochsAnew: "`on_train_epoch_start` of BeginsEpochsAnew changes the weights",
    Tenth: "`on_train_batch_end` of Tenth changes the weights",
    StepsInTheTrainingStep: "`training_step` of StepsInTheTrainingStep changes the weights",
    Averaged: "a callback of Averaged (`StochasticWeightAveraging`) changes the weights",
    Accumulates: "Accumulates does not make one step for each batch",
    Keeps: "another hook of Keeps changes the gradients",
    Clips: "`on_before_optimizer_step` of Clips changes the gradients",
    FollowsFrozen: "`on_train_batch_end` of FollowsFrozen changes the weights",
    Fails: "`on_train_epoch_end` of Fails fails where it is tried: "
    '"what the client\'s own data would have set"',
}


def found_of(model: Net, epochs: int | None = EPOCHS) -> Any:
    return first_batch(
        model, (3,), train=True, samples=SAMPLES, batch_size=BATCH, epochs=epochs
    ).training


@pytest.mark.parametrize("kind", SAYS, ids=lambda kind: kind.__name__)
def test_what_changes_the_steps_is_named(kind: type[Net]) -> None:
    model = kind()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    facts = found_of(model)
    assert facts.reason == SAYS[kind]
    assert facts.optimizer == ("sgd" if SAYS[kind] is None else "unknown")
    assert facts.steps == 12
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "kind", [kind for kind in SAYS if kind is not Fails], ids=lambda kind: kind.__name__
)
def test_it_agrees_with_a_training(kind: type[Net]) -> None:
    """Modules that are said to make their optimiser's steps alone do so, and no others."""
    torch.manual_seed(0)
    model = kind()
    samples = [(torch.randn(3), index % 2) for index in range(SAMPLES)]
    begun = {n: v.clone() for n, v in model.state_dict().items()}
    plain = Net()
    plain.load_state_dict(begun)
    moving = [plain.head.weight] if kind is Freezes else list(plain.head.parameters())
    optimizer = torch.optim.SGD(moving, lr=0.3)
    loader = DataLoader(samples, batch_size=BATCH)  # type: ignore[arg-type, var-annotated]
    for _ in range(EPOCHS):
        for batch in loader:
            optimizer.zero_grad()
            plain.training_step(batch, 0).backward()
            optimizer.step()
    trainer = quiet_trainer(model, max_epochs=EPOCHS)
    trainer.fit(model, train_dataloaders=loader)
    same = all(
        torch.allclose(value, dict(plain.state_dict())[name], atol=1e-6)
        for name, value in model.state_dict().items()
    )
    # Gradients of real samples are too small for this clipping.
    assert same == (SAYS[kind] is None or kind is Clips)


def test_of_one_step_what_follows_it_alone_matters() -> None:
    assert found_of(ClampsLate(), epochs=1).reason is None
    assert found_of(FollowsFrozen(), epochs=None).reason is None
    assert found_of(BeginsAnew(), epochs=None).reason == SAYS[BeginsAnew]


class Squares(Net):
    """A regression, whose hook needs what the training step keeps."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.mse_loss(self.head(self.body(batch[0])), batch[1])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert batch[1].shape == (BATCH, 2)


def test_the_samples_have_the_clients_form() -> None:
    settings: dict[str, Any] = {"train": True, "samples": 2, "batch_size": BATCH, "epochs": 1}
    example = (torch.randn(3), torch.randn(2))
    assert first_batch(Squares(), (3,), **settings, example=example).training.reason is None
    reason = first_batch(Squares(), (3,), **settings).training.reason
    assert reason is not None
    assert "`on_train_batch_end` of Squares fails where it is tried" in reason


def test_few_steps_of_a_large_model_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedleak.models.step_hooks.NUMBERS", 1.0)
    samples = [(torch.zeros(3), 0)] * SAMPLES
    loader = DataLoader(samples, batch_size=BATCH)  # type: ignore[arg-type, var-annotated]
    model = Tenth()
    assert tried_hooks(model, loader, epochs=EPOCHS) is None
    assert model.global_step == 2


def test_hooks_of_its_own() -> None:
    assert not has_hooks(Net())
    assert has_hooks(Averaged())
    assert overrides(Clips(), "on_before_optimizer_step")
    assert not overrides(Clips(), "on_train_end")
