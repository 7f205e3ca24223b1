"""What a model has to be: Lightning's own class, for whoever may not import Lightning itself."""

from pytorch_lightning import LightningModule

__all__ = ["LightningModule"]
