"""The state of a federation between two rounds, so that it can be resumed."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.serverapp.strategy import Strategy
from safetensors import safe_open
from safetensors.torch import save_file

from fedleak.updates import Tensors


@dataclass
class Outcome:
    """How a federation went so far.

    Args:
        rounds: number of rounds done.
        failures: replies of training rounds that were missing or errors.
        metrics: global evaluation by round, round 0 being the untrained model.
    """

    rounds: int = 0
    failures: int = 0
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """The last round's test accuracy; none if the model reports no such metric."""
        last = self.metrics.get(self.rounds, {})
        return next((last[name] for name in last if name.endswith(("accuracy", "acc"))), None)


def write_checkpoint(path: Path, weights: Tensors, strategy: Strategy, outcome: Outcome) -> None:
    """Write weights, the strategy's own arrays (moments and the like) and the figures so far."""
    tensors = {f"weights/{name}": value.contiguous() for name, value in weights.items()}
    for attribute, value in vars(strategy).items():
        if isinstance(value, dict) and all(isinstance(v, np.ndarray) for v in value.values()):
            for key, array in value.items():
                tensors[f"strategy/{attribute}/{key}"] = torch.from_numpy(np.array(array))
    header = {"rounds": outcome.rounds, "failures": outcome.failures, "metrics": outcome.metrics}
    part = path.with_suffix(".part")
    save_file(tensors, part, {"outcome": json.dumps(header)})
    part.replace(path)


def read_outcome(path: Path) -> Outcome:
    """The figures in a checkpoint; those of a federation not begun if there is none."""
    if not path.exists():
        return Outcome()
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["outcome"])
    metrics = {int(round_): values for round_, values in header["metrics"].items()}
    return Outcome(header["rounds"], header["failures"], metrics)


def restore(path: Path, strategy: Strategy) -> Tensors:
    """Put a checkpoint's arrays back into the strategy.

    Returns:
        The global weights.
    """
    arrays: dict[str, dict[str, Any]] = {}
    weights: Tensors = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            kind, _, rest = name.partition("/")
            if kind == "weights":
                weights[rest] = file.get_tensor(name)
            else:
                attribute, _, key = rest.partition("/")
                arrays.setdefault(attribute, {})[key] = file.get_tensor(name).numpy()
    for attribute, value in arrays.items():
        setattr(strategy, attribute, value)
    return weights
