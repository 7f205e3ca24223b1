"""Lightning's trainer without output, of the package that a model's own class comes from."""

import logging
import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import nn


def lightning_of(model: nn.Module) -> ModuleType:
    """The package of a model's class: ``pytorch_lightning`` or ``lightning.pytorch``.

    A trainer of one of them does not take the modules of the other.

    Args:
        model: a LightningModule of either package.
    """
    for owner in type(model).__mro__:
        package, _, rest = owner.__module__.partition(".core.")
        if owner.__name__ == "LightningModule" and rest:
            return import_module(package)
    return import_module("pytorch_lightning")


def quiet_trainer(model: nn.Module, **settings: Any) -> Any:
    """A Trainer without progress bar, checkpoints and model summary, whose logger keeps nothing.

    Args:
        model: the LightningModule that it is for.
        settings: further arguments of the Trainer.
    """
    lightning = lightning_of(model)
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A module may well use its logger in every step.
    logger = import_module(f"{lightning.__name__}.loggers.logger").DummyLogger()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lightning.Trainer(
            accelerator="auto" if torch.cuda.is_available() else "cpu",
            devices=1,
            logger=logger,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **settings,
        )
