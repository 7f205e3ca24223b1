"""The base class of models."""

from fedleak.models.base import LightningModule
from fedleak.registry import names


def test_registered_models_are_lightning_modules() -> None:
    models = {name: point.load() for name, point in names("models").items()}
    assert len(models) >= 6
    for name, kind in models.items():
        assert issubclass(kind, LightningModule), name
