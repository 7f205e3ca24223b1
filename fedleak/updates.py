"""The things that travel: what the server saw, what it knows, and what only the scorer sees."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fedleak.compact import CompactTensors
from fedleak.errors import BadInput, require

Protocol = Literal["fedsgd", "fedavg"]
LabelRecovery = Literal["bias_counts", "idlg", "row_minima"]
Tensors = dict[str, Tensor]

UPDATE_FORMAT = "fedleak-update-1"
GLOBAL_FORMAT = "fedleak-global-1"
TRUTH_FORMAT = "fedleak-truth-1"
KEY = re.compile(r"r(\d{4,})-c(\d{4,})")


def batch_loss(model: nn.Module, batch: Any) -> Tensor:
    """The scalar loss that a client differentiates: what a model has to offer to be attacked.

    A module with a method ``batch_loss(batch)`` is asked for that; any other LightningModule is
    asked for ``training_step(batch, 0)``, which may return the loss or a mapping with ``"loss"``.

    Args:
        model: the module.
        batch: what the module's data loader yields, such as ``(images, labels)``.

    Raises:
        BadInput: if the module offers neither, or no loss comes back.
    """
    method = getattr(model, "batch_loss", None)
    if method is None:
        step = getattr(model, "training_step", None)
        if step is None:
            raise BadInput(
                f"Expected {type(model).__name__} to have `batch_loss(batch)` or "
                "`training_step(batch, batch_idx)`, got a module with neither."
            )
        result = step(batch, 0)
    else:
        result = method(batch)
    loss = result["loss"] if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        raise BadInput(
            f"Expected the loss of {type(model).__name__} to be a scalar tensor, "
            f"got {type(loss).__name__}."
        )
    return loss


def weights_to_gradient(
    sent: Mapping[str, Tensor],
    received: Mapping[str, Tensor],
    *,
    learning_rate: float,
    steps: int,
) -> Tensors:
    """The gradient that explains a change of weights by plain SGD.

    A client that returns weights has moved them by ``-learning_rate`` times the sum of its
    gradients, so ``(sent - received) / (learning_rate * steps)`` is the mean gradient over its
    local steps: exact for one step, an estimate for several, and off by the optimiser's own scaling
    where that is not SGD.

    Args:
        sent: the weights that the server sent.
        received: the weights that the client returned, of the same names and shapes.
        learning_rate: the client's learning rate.
        steps: number of local optimiser steps.

    Returns:
        Gradient by parameter name, computed in float64 and rounded to the weights' type.
    """
    scale = 1 / (learning_rate * steps)
    return {
        name: ((sent[name].double() - value.double()) * scale).to(value.dtype)
        for name, value in received.items()
    }


def gradient_to_weights(
    sent: Mapping[str, Tensor], gradient: Mapping[str, Tensor], *, learning_rate: float
) -> Tensors:
    """The weights after one SGD step: ``sent - learning_rate * gradient``.

    Args:
        sent: the weights that the server sent; names without a gradient stay as they are.
        gradient: gradient by parameter name.
        learning_rate: the step's learning rate.
    """
    return {
        name: value - learning_rate * gradient[name] if name in gradient else value
        for name, value in sent.items()
    }


@dataclass(frozen=True)
class Knowledge:
    """What the server knows besides the update itself.

    Args:
        model: the architecture; an attack loads the weights that were sent into a copy of it.
        input_shape: shape of one sample, such as ``(C, H, W)``.
        num_classes: number of classes.
        mean: the data set's mean of each channel, as the clients normalise with it.
        std: the deviation of each channel.
        num_samples: number of samples that the gradient was computed from.
        labels: the samples' labels ``(num_samples,)`` if they are known.
        protocol: ``fedsgd`` (a gradient came) or ``fedavg`` (weights came).
        learning_rate: learning rate of the client's local training.
        local_steps: number of local optimiser steps.
        batch_size: number of samples of a local step, the last one of an epoch having what is left;
            none: not known, which is of no matter for one step or one sample.
        plain_sgd: whether the client's optimiser is SGD without momentum, weight decay or a
            schedule.
        training: whether the client's model was in train mode (dropout on, batch norm using the
            batch's own statistics) or in eval mode.
        loss: the loss of a batch, given model and batch.
        label_recovery: how an attack finds labels that are not known; see
            :mod:`fedleak.attacks.labels`.

    Raises:
        BadInput: if a number is below 1.
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    num_samples: int = 1
    labels: Tensor | None = None
    protocol: Protocol = "fedsgd"
    learning_rate: float = 0.1
    local_steps: int = 1
    batch_size: int | None = None
    plain_sgd: bool = True
    training: bool = True
    loss: Callable[[nn.Module, Any], Tensor] = field(default=batch_loss)
    label_recovery: LabelRecovery = "bias_counts"

    def __post_init__(self) -> None:
        for name in ("num_samples", "local_steps", "batch_size"):
            value = getattr(self, name)
            require(
                value is None or value >= 1, f"Expected `{name}` to be at least 1, got {value}."
            )

    @property
    def local_batches(self) -> list[slice]:
        """The samples of each local step of an epoch, in the order in which they are used."""
        size = self.num_samples if self.batch_size is None else self.batch_size
        return [
            slice(at, min(at + size, self.num_samples)) for at in range(0, self.num_samples, size)
        ]

    @property
    def epochs(self) -> int:
        """Number of whole local epochs."""
        return self.local_steps // len(self.local_batches)

    def of_samples(self, number: int) -> Self:
        """What is known of a client of the same federation with so many samples.

        Args:
            number: number of its samples; of a known ``batch_size`` and whole epochs, its steps are
                as many more or less as it takes to go through them as often.
        """
        other = replace(self, num_samples=number)
        if self.batch_size is None or self.local_steps % len(self.local_batches):
            return other
        return replace(other, local_steps=self.epochs * len(other.local_batches))

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest valid input (pixel 0 and pixel 1, normalised), ``(C, 1, 1)`` each."""
        shape = (-1, *[1] * (len(self.input_shape) - 1))
        mean, std = torch.tensor(self.mean).reshape(shape), torch.tensor(self.std).reshape(shape)
        return -mean / std, (1 - mean) / std


@dataclass(frozen=True)
class InterceptedUpdate:
    """What the server saw of one client in one round.

    Args:
        round: number of the round, from 1.
        client: number of the client, from 0.
        protocol: ``fedsgd``: ``received`` is a gradient; ``fedavg``: it is weights.
        num_examples: number of examples that the client says it used.
        model: name of the model, such as ``smlp+precode``.
        sent: the global parameters and buffers that the server sent, by name.
        received: what the client sent back, by the same names; kept compact where it came so.
    """

    round: int
    client: int
    protocol: Protocol
    num_examples: int
    model: str
    sent: Tensors
    received: Mapping[str, Tensor]

    @property
    def key(self) -> str:
        """The name of the update's files, such as ``r0001-c0003``."""
        return update_key(self.round, self.client)

    def check(self, model: nn.Module) -> None:
        """Check that the update is complete, finite and one of this model.

        Args:
            model: the architecture that the update should fit.

        Raises:
            BadInput: if it is not.
        """
        expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        for title, tensors in (("sent", self.sent), ("received", self.received)):
            names = set(expected) if title == "sent" else set(dict(model.named_parameters()))
            missing = sorted(names - set(tensors))
            strange = sorted(set(tensors) - set(expected))
            if missing or strange:
                raise BadInput(
                    f"Expected an update of {type(model).__name__}, but what the update {title} "
                    f"lacks {missing[:3] or 'nothing'} and has {strange[:3] or 'nothing'} besides: "
                    "give the model that the federation trained."
                )
            for name, value in tensors.items():
                if tuple(value.shape) != expected[name]:
                    raise BadInput(
                        f"Expected `{name}` of shape {expected[name]} in an update of "
                        f"{type(model).__name__}, got {tuple(value.shape)}: give the model that "
                        "the federation trained."
                    )
                if value.is_floating_point() and not bool(value.isfinite().all()):
                    raise BadInput(
                        f"Expected finite numbers, got NaN or infinity in `{name}` of update "
                        f"{self.key}: this client's training diverged, leave it out."
                    )

    def gradient(self, model: nn.Module, knowledge: Knowledge) -> Tensors:
        """The client's gradient by parameter name: as it came, or estimated from weights.

        Args:
            model: the architecture, whose parameters (not buffers) are wanted.
            knowledge: gives learning rate and number of local steps.
        """
        names = [name for name, _ in model.named_parameters()]
        received = {name: self.received[name] for name in names}
        if self.protocol == "fedsgd":
            return received
        return weights_to_gradient(
            self.sent,
            received,
            learning_rate=knowledge.learning_rate,
            steps=knowledge.local_steps,
        )

    def save(self, folder: Path) -> Path:
        """Write the update to ``folder``; what was sent goes to a file that the round shares.

        Args:
            folder: an existing folder.

        Returns:
            The path of the update's file.
        """
        shared = folder / f"r{self.round:04d}-global.safetensors"
        if not shared.exists():
            header = {"format": GLOBAL_FORMAT, "round": str(self.round), "model": self.model}
            _write(self.sent, shared, header)
        path = folder / f"{self.key}.safetensors"
        header = {
            "format": UPDATE_FORMAT,
            "round": str(self.round),
            "client": str(self.client),
            "protocol": self.protocol,
            "num_examples": str(self.num_examples),
            "model": self.model,
        }
        received = self.received
        _write(received.encoded if isinstance(received, CompactTensors) else received, path, header)
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an update and, beside it, what the server had sent in its round.

        Args:
            path: a file that :meth:`save` wrote.

        Raises:
            BadInput: if a file is missing, truncated or of another kind.
        """
        received, header = _read(path, UPDATE_FORMAT)
        try:
            number, client = int(header["round"]), int(header["client"])
            protocol, examples = header["protocol"], int(header["num_examples"])
            model = header["model"]
        except (KeyError, ValueError) as error:
            raise BadInput(f"Expected a complete header in {path}, got {header}.") from error
        if protocol not in ("fedsgd", "fedavg"):
            raise BadInput(f"Expected protocol fedsgd or fedavg in {path}, got `{protocol}`.")
        sent, _ = _read(path.with_name(f"r{number:04d}-global.safetensors"), GLOBAL_FORMAT)
        return cls(
            number, client, "fedsgd" if protocol == "fedsgd" else "fedavg", examples, model,
            sent, CompactTensors(received) if protocol == "fedsgd" else received,
        )  # fmt: skip


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
        _write(tensors, path, {"format": TRUTH_FORMAT})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it back.

        Raises:
            BadInput: if the file is missing, truncated or of another kind.
        """
        tensors, _ = _read(path, TRUTH_FORMAT)
        for name in ("inputs", "labels"):
            require(name in tensors, f"Expected `{name}` in {path}, got {sorted(tensors)}.")
        noise = {n.removeprefix("noise/"): t for n, t in tensors.items() if n.startswith("noise/")}
        return cls(tensors["inputs"], tensors["labels"], noise)


def update_key(round_: int, client: int) -> str:
    """The name of the files of one client's update in one round, such as ``r0001-c0003``."""
    return f"r{round_:04d}-c{client:04d}"


def update_files(folder: Path) -> list[Path]:
    """The update files in a folder, in the order of rounds and clients."""
    found = {}
    for path in folder.glob("r*-c*.safetensors"):
        if match := KEY.fullmatch(path.stem):
            found[int(match[1]), int(match[2])] = path
    return [found[key] for key in sorted(found)]


def _write(tensors: Mapping[str, Tensor], path: Path, header: dict[str, str]) -> None:
    # Written beside and moved into place, so that a reader never sees half a file.
    part = path.with_suffix(".part")
    # Tied weights share memory, which the format refuses; copies do not.
    apart = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    save_file(apart, part, header)
    part.replace(path)


def _read(path: Path, expected: str) -> tuple[Tensors, dict[str, str]]:
    require(path.is_file(), f"Expected a file at {path}, found none.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadInput(
            f"Expected a complete safetensors file at {path}, got one that cannot be read "
            f"({error}): copy it again."
        ) from error
    if header.get("format") != expected:
        raise BadInput(
            f"Expected a file of format {expected} at {path}, got "
            f"{header.get('format', 'a safetensors file without a format')}."
        )
    return tensors, header
