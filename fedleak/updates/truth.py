"""What a client really had: for the scorer alone."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from torch import Tensor

from fedleak.errors import require
from fedleak.updates.files import TRUTH_FORMAT, Tensors, read_tensors, write_tensors


@dataclass(frozen=True)
class GroundTruth:
    """What the client really had: for the scorer alone, never for an attack.

    Args:
        inputs: the batch, normalised, ``(num_samples, ...)``.
        labels: its labels ``(num_samples,)``.
        noise: noise slot -> what the slot drew, ``(num_samples, ...)``, for one sample in several
            local epochs ``(1, epochs, ...)``; empty of several samples in several epochs.
    """

    inputs: Tensor
    labels: Tensor
    noise: Tensors = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it to a safetensors file."""
        tensors = {"inputs": self.inputs, "labels": self.labels}
        tensors |= {f"noise/{name}": value for name, value in self.noise.items()}
        write_tensors(tensors, path, {"format": TRUTH_FORMAT})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it back.

        Raises:
            BadInput: if the file is missing, truncated or of another kind.
        """
        tensors, _ = read_tensors(path, TRUTH_FORMAT)
        for name in ("inputs", "labels"):
            require(name in tensors, f"Expected `{name}` in {path}, got {sorted(tensors)}.")
        noise = {n.removeprefix("noise/"): t for n, t in tensors.items() if n.startswith("noise/")}
        return cls(tensors["inputs"], tensors["labels"], noise)
