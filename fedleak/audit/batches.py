"""The truth of a recorded training: its batches, which only the scorer reads."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fedleak.audit.facts import Place
from fedleak.errors import BadInput, require
from fedleak.updates.files import Tensors, read_tensors, short, write_tensors

FORMAT = "fedleak-batches-1"
TARGETS = "targets"


@dataclass(frozen=True, repr=False)
class Batch:
    """The truth of one backward pass.

    Args:
        inputs: the tensors that the model, or its ``training_step``, was called with, by place.
        targets: the target of the loss function; None if none was seen.
    """

    inputs: dict[Place, Tensor]
    targets: Tensor | None = None

    def __repr__(self) -> str:
        # No samples: a notebook shows it for every cell that ends in one.
        shapes = {place: tuple(value.shape) for place, value in self.inputs.items()}
        return f"<Batch of {shapes}>"


def save_batches(batches: Sequence[Batch], path: Path) -> None:
    """Write batches to a safetensors file."""
    tensors: Tensors = {}
    for number, batch in enumerate(batches):
        named = {json.dumps(place): value for place, value in batch.inputs.items()}
        if batch.targets is not None:
            named[TARGETS] = batch.targets
        tensors |= {f"{number} {name}": value for name, value in named.items()}
    write_tensors(tensors, path, {"format": FORMAT, "batches": str(len(batches))})


def load_batches(path: Path) -> list[Batch]:
    """Read a file that :func:`save_batches` wrote.

    Raises:
        BadInput: if the file is missing, truncated or of another format.
    """
    tensors, header = read_tensors(path, FORMAT)
    count = header.get("batches", "")
    require(count.isdigit(), f"Expected the number of batches in {path}, got {short(count)}.")
    found: list[Batch] = [Batch({}) for _ in range(min(int(count), len(tensors)))]
    for name, value in tensors.items():
        number, _, place = name.partition(" ")
        try:
            batch = found[int(number)]
            if place == TARGETS:
                found[int(number)] = Batch(batch.inputs, value)
            else:
                keys = json.loads(place)
                if not isinstance(keys, list):
                    raise ValueError(place)
                batch.inputs[tuple(keys)] = value
        except (ValueError, IndexError, TypeError) as error:
            raise BadInput(f"Expected a tensor of a batch in {path}, got {short(name)}.") from error
    return found
