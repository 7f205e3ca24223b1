"""The ground truth of an update, which only the scorer reads."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from fedleak.errors import require
from fedleak.updates.files import TRUTH_FORMAT, Tensors, read_tensors, short, write_tensors

NOISE = "noise/"


@dataclass(frozen=True, repr=False)
class GroundTruth:
    """The client's data and noise behind an update: for the scorer, never for an attack.

    Args:
        inputs: the batch, normalised, or whole numbers such as tokens, ``(num_samples, ...)``.
        labels: its labels ``(num_samples,)``, integers from 0, or the targets of a regression.
        noise: noise slot -> the noise that it drew, ``(num_samples, ...)``, or
            ``(1, epochs, ...)`` for one sample in several local epochs; empty for several samples
            in several epochs.
    """

    inputs: Tensor
    labels: Tensor
    noise: Tensors = field(default_factory=dict)

    def __repr__(self) -> str:
        # No pixels: a notebook shows it for every cell that ends in one.
        number, shape = len(self.inputs), tuple(self.inputs.shape[1:])
        return f"<GroundTruth of {number} sample{'s' * (number != 1)} of shape {shape}>"

    def save(self, path: Path) -> None:
        """Write it to a safetensors file."""
        tensors = {"inputs": self.inputs, "labels": self.labels}
        tensors |= {f"{NOISE}{name}": value for name, value in self.noise.items()}
        write_tensors(tensors, path, {"format": TRUTH_FORMAT})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that :meth:`save` wrote.

        Raises:
            BadInput: if the file is missing, truncated or of another format, or if inputs, labels
                and noise are not finite numbers for the same number of samples.
        """
        tensors, _ = read_tensors(path, TRUTH_FORMAT)
        for name in ("inputs", "labels"):
            require(name in tensors, f"Expected `{name}` in {path}, got {short(sorted(tensors))}.")
        strange = [n for n in tensors if n not in ("inputs", "labels") and not n.startswith(NOISE)]
        require(not strange, f"Expected inputs, labels and noise in {path}, got {short(strange)}.")
        inputs, labels = tensors["inputs"], tensors["labels"]
        require(
            inputs.dim() >= 2 and inputs.numel() > 0,
            f"Expected `inputs` of shape (samples, ...) in {path}, got {short(inputs.shape)}.",
        )
        kind = labels.dtype
        require(
            labels.shape == inputs.shape[:1] and kind != torch.bool and not kind.is_complex,
            f"Expected `labels` to be {len(inputs)} numbers in {path}, one for each of the "
            f"inputs, got {kind} of shape {short(tuple(labels.shape))}.",
        )
        require(
            kind.is_floating_point or int(labels.min()) >= 0,
            f"Expected `labels` to be at least 0 in {path}, got {float(labels.min()):g}.",
        )
        numbers = {"labels": not kind.is_floating_point, "inputs": inputs.dtype == torch.int64}
        for name, value in tensors.items():
            if numbers.get(name):
                continue
            require(
                value.dim() >= 1 and len(value) == len(inputs),
                f"Expected {short(name)} of {len(inputs)} samples in {path}, got the shape "
                f"{short(tuple(value.shape))}.",
            )
            require(
                value.dtype.is_floating_point and bool(value.isfinite().all()),
                f"Expected finite floating point numbers in {short(name)} of {path}, got others.",
            )
        noise = {n.removeprefix(NOISE): t for n, t in tensors.items() if n.startswith(NOISE)}
        return cls(inputs, labels, noise)

    def check(self, key: str, samples: int, input_shape: Sequence[int], num_classes: int) -> None:
        """Check that it can belong to an update.

        Args:
            key: the update's key, for messages.
            samples: number of samples that the update was computed from.
            input_shape: shape of one sample.
            num_classes: number of classes.

        Raises:
            BadInput: if number or shape of the inputs differ, or a label is out of range.
        """
        expected, found = (samples, *input_shape), tuple(self.inputs.shape)
        require(
            found == expected,
            f"Expected the truth of update {key} to hold inputs of shape {expected}, got {found}.",
        )
        if self.labels.is_floating_point():
            return
        highest = int(self.labels.max())
        require(
            highest < num_classes,
            f"Expected the truth of update {key} to hold labels below {num_classes}, the number of "
            f"classes, got {highest}.",
        )


def join(truths: Sequence[GroundTruth]) -> GroundTruth:
    """The truth behind an update of several clients.

    Args:
        truths: the clients' truths, in their order.

    Returns:
        All their samples; the noise of the slots of which all have some of the same shape.
    """
    shapes = [{n: v.shape[1:] for n, v in truth.noise.items()} for truth in truths]
    slots = [n for n, shape in shapes[0].items() if all(own.get(n) == shape for own in shapes)]
    return GroundTruth(
        torch.cat([truth.inputs for truth in truths]),
        torch.cat([truth.labels for truth in truths]),
        {name: torch.cat([truth.noise[name] for truth in truths]) for name in slots},
    )
