"""The base class of models."""

import pytorch_lightning as pl

from fedleak.registry import names


def test_registered_models_are_lightning_modules() -> None:
    for point in names("models").values():
        assert issubclass(point.load(), pl.LightningModule)
