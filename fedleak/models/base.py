"""The base class of models, re-exported for modules that may not import Lightning themselves."""

from pytorch_lightning import LightningModule

__all__ = ["LightningModule"]
