"""What was seen of a client's training: facts that an attacker who knows the app's code knows."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from fedleak.errors import BadInput, require
from fedleak.schema import check_values

Place = tuple[str | int, ...]
"""Where a tensor is in arguments or in an output: positions, names and keys, from the outside."""
LossKind = Literal["function", "output", "training_step", "unknown"]
LARGEST = 64 * 2**20
"""Largest size in bytes of a file of facts."""


@dataclass(frozen=True)
class Relation:
    """What an input is in all batches of a training, as the app's code makes it.

    Args:
        value: the number that all its entries are; None if they differ.
        copy_of: place of the input whose numbers it has; None if it has none's.
        mask_of: place of the whole numbers of which it is a mask: 0 at padding, 1 elsewhere.
        padding: the number that stands for padding there.
    """

    value: float | None = None
    copy_of: Place | None = None
    mask_of: Place | None = None
    padding: int | None = None


@dataclass(frozen=True)
class TensorFacts:
    """A tensor in a call's arguments.

    Args:
        path: where it is; a position for a positional argument, a name for one by keyword.
        shape: its shape, batch dimension included.
        dtype: its type, such as ``float32``.
        relation: what it is in all batches; None if nothing is known of it.
    """

    path: Place
    shape: tuple[int, ...]
    dtype: str
    relation: Relation | None = None


@dataclass(frozen=True)
class ModelFacts:
    """The module whose weights the client sends.

    Args:
        path: reference ``module:class``.
        state: name, shape and type of each tensor of its state, in order.
        lightning: whether it is a LightningModule.
        called: how it was called: as itself, inside a wrapper such as DataParallel's, in parts, or
            not at all.
        training: whether it was in train mode; None if only some of its modules were.
        in_eval_mode: its modules in eval mode, where only some are.
        frozen: its parameters that need no gradient.
    """

    path: str
    state: tuple[tuple[str, tuple[int, ...], str], ...]
    lightning: bool = False
    called: Literal["itself", "wrapped", "parts", "never"] = "itself"
    training: bool | None = True
    in_eval_mode: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True)
class LossFacts:
    """The scalar that the client differentiates.

    Args:
        kind: a loss function of torch, an output of the model, a LightningModule's
            ``training_step``, or unknown.
        function: name of the loss function in ``torch.nn.functional``.
        arguments: its arguments by name besides input and target; a tensor as
            ``{"tensor": numbers, "dtype": type}``.
        output: where the loss, or its input, is in the model's output.
        changes: what was done to the model's output before it is the loss's input, in order:
            ``{"reshape": [-1, ...]}``, ``{"permute": [...]}``, ``{"dtype": type}``,
            ``{"apply": function, "dim": dimension}``.
        target: the loss's target: type, and shape without the batch dimension.
        target_input: path of the input that is the target too; None if none is.
        reduction: mean or sum, if it is taken afterwards.
        scale: factor of the loss.
        reason: why it is unknown.
    """

    kind: LossKind
    function: str = ""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    output: Place = ()
    changes: tuple[dict[str, Any], ...] = ()
    target: tuple[str, tuple[int, ...]] | None = None
    target_input: Place | None = None
    reduction: str | None = None
    scale: float = 1.0
    reason: str = ""


@dataclass(frozen=True)
class OptimizerFacts:
    """The client's optimiser.

    Args:
        path: reference ``module:class``.
        groups: settings of each group of parameters, with the names of its parameters under
            ``names``; None where the parameters are not the model's.
        rates: the learning rate of the first group in each step; empty if it is always the same.
        carried_over: whether it began with state of an earlier training, such as momentum.
        others: further optimisers that made steps.
    """

    path: str
    groups: tuple[dict[str, Any], ...]
    rates: tuple[float, ...] = ()
    carried_over: bool = False
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class MechanismFacts:
    """A mechanism of differential privacy that was seen at work.

    Args:
        name: ``local_dp_mod``, ``fixedclipping_mod`` or ``adaptiveclipping_mod`` (Flower's mods),
            ``dp_sgd`` (Opacus), or ``fixed_clipping`` or ``adaptive_clipping`` (strategies).
        settings: its settings, pairs of name and value.
        steps: how often it was used.
    """

    name: str
    settings: tuple[tuple[str, float | bool | str | None], ...] = ()
    steps: int = 1

    @property
    def values(self) -> dict[str, Any]:
        """The settings by name."""
        return dict(self.settings)

    @classmethod
    def of(cls, values: Any) -> Self:
        """Those of plain values, as JSON holds them.

        Raises:
            BadInput: if they are of another kind.
        """
        checked = check_values("mechanism", values, cls)
        require(
            all(len(pair) == 2 and isinstance(pair[0], str) for pair in checked["settings"]),
            "Expected the settings of a mechanism as pairs of name and value.",
        )
        settings = tuple((name, value) for name, value in checked["settings"])
        return cls(**checked | {"settings": settings})


@dataclass(frozen=True)
class TrainingFacts:
    """What was seen of one training of one client. It contains no sample and no label.

    Args:
        partition: number of the client, from 0; None if the app's node has none.
        model: the module whose weights are sent; None if none was seen.
        inputs: the tensors that the model is called with, of the largest batch.
        loss: what is differentiated; None if nothing was.
        optimizer: the optimiser; None if none made a step.
        batch_sizes: number of samples in each optimiser step, in order; of a gradient that is sent,
            of the one step that the server makes.
        shapes_differ: whether the samples of some batches have another shape than those of others.
        backward_passes: number of backward passes.
        sends: what the client returns: the model's weights as they were when its training ended,
            their change, the gradient, or something else, such as weights with noise; None if it is
            not known.
        gradients_changed: whether gradients were changed between backward pass and step, as by
            clipping or added noise.
        weights_changed: whether weights were changed outside the optimiser's steps: between two of
            them, after the last one, or before the first one, so that the training does not begin
            at the weights that were sent.
        batches_kept: number of batches in the file of truth.
        mechanisms: mechanisms of differential privacy that the client used.
        notes: what was seen that cannot be expressed otherwise, a sentence each.
        faults: errors of the recorder itself.
    """

    partition: int | None = None
    model: ModelFacts | None = None
    inputs: tuple[TensorFacts, ...] = ()
    loss: LossFacts | None = None
    optimizer: OptimizerFacts | None = None
    batch_sizes: tuple[int, ...] = ()
    backward_passes: int = 0
    sends: Literal["weights", "delta", "gradient", "other"] | None = None
    gradients_changed: bool = False
    weights_changed: bool = False
    shapes_differ: bool = False
    batches_kept: int = 0
    mechanisms: tuple[MechanismFacts, ...] = ()
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return len(self.batch_sizes)

    def save(self, path: Path) -> None:
        """Write them to a JSON file."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that :meth:`save` wrote.

        Raises:
            BadInput: if it is missing, too large, or of another kind.
        """
        require(path.is_file(), f"Expected facts of a client's training at {path}, found none.")
        try:
            size = path.stat().st_size
            require(size <= LARGEST, f"Expected at most {LARGEST:,} bytes in {path}, got {size:,}.")
            values = check_values("facts", json.loads(path.read_text(encoding="utf-8")), cls)
            nested = {"model": ModelFacts, "loss": LossFacts, "optimizer": OptimizerFacts}
            for name, kind in nested.items():
                if values.get(name) is not None:
                    values[name] = kind(**values[name])
            values["inputs"] = tuple(_tensor(item) for item in values.get("inputs", ()))
            seen = values.get("mechanisms", ())
            values["mechanisms"] = tuple(MechanismFacts.of(item) for item in seen)
            return cls(**values)
        except BadInput as error:
            raise BadInput(f"{str(error).rstrip('.')} in {path}.") from error
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise BadInput(
                f"Expected facts of a client's training in {path}, got a damaged file."
            ) from error


def _tensor(values: Any) -> TensorFacts:
    known = values.get("relation")
    return TensorFacts(**values | {"relation": None if known is None else Relation(**known)})
