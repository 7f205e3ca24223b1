"""The package of Lightning that a model comes from, and its trainer."""

import sys
from types import ModuleType

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fedleak.models.lightning import lightning_of, quiet_trainer
from tests.toys import OwnClassifier


def test_the_other_package_has_its_own_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """``import lightning as L`` defines the same classes again, under other modules."""
    other = ModuleType("lightning.pytorch")
    base = type("LightningModule", (nn.Module,), {"__module__": "lightning.pytorch.core.module"})
    monkeypatch.setitem(sys.modules, "lightning", ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", other)
    own = type("Own", (base,), {"__module__": "someone.core.models"})
    assert lightning_of(own()) is other
    assert lightning_of(OwnClassifier(input_shape=(1, 4, 4), num_classes=2)) is pl


class Logging(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.layer(batch).square().mean()
        self.logger.experiment.add_scalar("loss", loss, self.global_step)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_module_may_use_its_logger() -> None:
    model = Logging()
    before = model.layer.weight.detach().clone()
    trainer = quiet_trainer(model, max_steps=1)
    trainer.fit(model, train_dataloaders=DataLoader(torch.ones(2, 2), batch_size=2))
    assert "loss" in trainer.callback_metrics
    assert not torch.equal(model.layer.weight, before)
