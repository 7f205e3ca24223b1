"""The state of a federation between two rounds, so that it can be resumed."""

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from safetensors.torch import save_file

from fedleak.errors import BadInput
from fedleak.federation.engine.client_state import ClientStateFolder
from fedleak.updates.files import DTYPES, Tensors, opened, short

Array = npt.NDArray[Any]
# A strategy may keep counts and seeds of any integer type.
STATE_DTYPES = DTYPES | {"U16", "U32", "U64"}


@dataclass
class Outcome:
    """The results of a federation so far.

    Args:
        rounds: number of completed rounds.
        failures: number of replies that were missing, errors or refused.
        metrics: global test metrics by round; round 0 is the untrained model.
        lost: round -> number of its failures, of the rounds that have any.
        diverged: first round after which the global model or its loss was not finite; None if they
            always were.
        asked: round -> the clients that were asked, of a run that counts its privacy.
        weights: round -> the largest weight of a client in the mean, likewise.
        ended: why the federation ended before its last round; empty if it did not.
    """

    rounds: int = 0
    failures: int = 0
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)
    diverged: int | None = None
    asked: dict[int, list[int]] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)
    ended: str = ""

    @property
    def accuracy(self) -> float | None:
        """The last round's test accuracy, 0 to 1; None if the model reports no finite one."""
        last = self.metrics.get(self.rounds, {})
        found = next((last[name] for name in last if name.endswith(("accuracy", "acc"))), None)
        return found if found is not None and math.isfinite(found) else None


def write_checkpoint(path: Path, weights: Tensors, strategy: Strategy, outcome: Outcome) -> None:
    """Write the global weights, the strategy's state (such as Adam's moments) and the results.

    Args:
        path: the checkpoint, replaced in one step.
        weights: the global weights by name.
        strategy: the inner strategy.
        outcome: the results so far.
    """
    tensors = {f"weights/{name}": value.contiguous() for name, value in weights.items()}
    arrays, plain = _state(strategy, "strategy")
    tensors |= {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    header = asdict(outcome)
    part = path.with_suffix(".part")
    save_file(tensors, part, {"outcome": json.dumps(header), "strategy": json.dumps(plain)})
    part.replace(path)


def read_outcome(path: Path, rounds: int | None = None) -> Outcome:
    """The results in a checkpoint; those of no rounds if the file does not exist.

    Args:
        path: the checkpoint.
        rounds: number of rounds of the federation. If None, any number may have been done.

    Raises:
        BadInput: if the file is damaged, or has more rounds than that.
    """
    if not path.exists():
        return Outcome()
    with _opened_checkpoint(path) as file:
        header = json.loads(file.metadata()["outcome"])
        done, failures = header["rounds"], header["failures"]
        if not _are_counts((done, failures)) or (rounds is not None and done > rounds):
            raise ValueError(f"{short(done)} rounds and {short(failures)} failures")
        metrics = {
            int(round_): {str(name): float(value) for name, value in values.items()}
            for round_, values in header["metrics"].items()
        }
        # Checkpoints of early versions do not have the two.
        lost = {int(round_): number for round_, number in header.get("lost", {}).items()}
        diverged = header.get("diverged")
        if not _are_counts((*lost.values(), diverged or 0)):
            raise ValueError(f"{short(lost)} lost replies, diverged in round {short(diverged)}")
        asked = {int(r): list(clients) for r, clients in header.get("asked", {}).items()}
        weights = {int(r): float(weight) for r, weight in header.get("weights", {}).items()}
        ended = header.get("ended", "")
        if not _are_counts(client for clients in asked.values() for client in clients) or not all(
            0 < weight <= 1 for weight in weights.values()
        ):
            raise ValueError("the clients of a round, or their weights, are not valid")
        if not isinstance(ended, str):
            raise TypeError(f"a text for why it ended, got {short(ended)}")
        return Outcome(done, failures, metrics, lost, diverged, asked, weights, ended)


def client_state_folder(path: Path) -> ClientStateFolder:
    """The store of the clients' states: a folder beside the checkpoint."""
    return ClientStateFolder(path.with_suffix("").resolve())


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint and the clients' states beside it, if they exist."""
    path.unlink(missing_ok=True)
    shutil.rmtree(client_state_folder(path).path, ignore_errors=True)


def restore(
    path: Path, strategy: Strategy, weights: Mapping[str, torch.Tensor] | None = None
) -> Tensors:
    """Restore a strategy's state from a checkpoint.

    Args:
        path: the checkpoint.
        strategy: a newly made strategy.
        weights: weights of the model. If given, those in the checkpoint must have the same names
            and shapes, and are returned in this order, since strategies sum in it.

    Returns:
        The global weights.

    Raises:
        BadInput: if the file is damaged, or holds the state of another model or strategy; the
            strategy may be partly restored then and must not be used.
    """
    with _opened_checkpoint(path) as file:
        plain = json.loads(file.metadata()["strategy"])
        arrays: dict[str, Array] = {}
        found: Tensors = {}
        for name in file.keys():  # noqa: SIM118
            if name.startswith("weights/"):
                found[name.removeprefix("weights/")] = file.get_tensor(name)
            else:
                arrays[name] = file.get_tensor(name).numpy()
        if weights is not None:
            for name in weights.keys() | found.keys():
                shapes = [tuple(part[name].shape) for part in (weights, found) if name in part]
                if len(shapes) < 2 or shapes[0] != shapes[1]:
                    raise ValueError(f"{short(name)} is missing, of another shape or unknown")
            found = {name: found[name] for name in weights}
        _set_state(strategy, "strategy", arrays, plain)
        return found


@contextmanager
def _opened_checkpoint(path: Path) -> Iterator[Any]:
    """An opened checkpoint; any invalid content found within the block becomes BadInput."""
    with opened(path, STATE_DTYPES) as file:
        try:
            yield file
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split()):.120}"
            raise BadInput(
                f"Expected the state of this federation in {path}, got another one ({reason}): "
                "delete the file, and the federation begins anew with `--resume`."
            ) from error


def _are_counts(values: Iterable[Any]) -> bool:
    return all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9
        for value in values
    )


def _state(strategy: Strategy, prefix: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """The attributes of a strategy that change between rounds: arrays and numbers, by path.

    The state of a strategy that wraps another one, as those for differential privacy do, includes
    the inner strategy's.
    """
    arrays: dict[str, Array] = {}
    plain: dict[str, Any] = {}
    for attribute, value in vars(strategy).items():
        path = f"{prefix}/{attribute}"
        if isinstance(value, Strategy):
            inner_arrays, inner_plain = _state(value, path)
            arrays |= inner_arrays
            plain |= inner_plain
        elif isinstance(value, bool | int | float):
            plain[path] = value
        elif isinstance(value, np.ndarray):
            arrays[path] = value
        elif isinstance(value, ArrayRecord):
            arrays |= {f"{path}/{i}": item.numpy() for i, item in enumerate(value.values())}
            plain[path] = {"kind": "record", "keys": list(value)}
        elif _holds_arrays(value):
            # The order of the keys is kept, since strategies sum in it.
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            arrays |= {f"{path}/{i}": value[key] for i, key in enumerate(keys)}
            plain[path] = {"kind": type(value).__name__, "keys": keys}
    return arrays, plain


def _set_state(
    strategy: Strategy, prefix: str, arrays: Mapping[str, Array], plain: Mapping[str, Any]
) -> None:
    for attribute, value in vars(strategy).items():
        path = f"{prefix}/{attribute}"
        if isinstance(value, Strategy):
            _set_state(value, path, arrays, plain)
        elif path in arrays:
            setattr(strategy, attribute, arrays[path])
        elif isinstance(plain.get(path), dict):
            kind, keys = plain[path]["kind"], plain[path]["keys"]
            found = {key: arrays[f"{path}/{i}"] for i, key in enumerate(keys)}
            if kind == "record":
                record = ArrayRecord({key: FlowerArray(array) for key, array in found.items()})
                setattr(strategy, attribute, record)
            else:
                setattr(strategy, attribute, found if kind == "dict" else list(found.values()))
        elif path in plain:
            if not isinstance(plain[path], bool | int | float):
                raise TypeError(f"a number for {path}, got {short(plain[path])}")
            setattr(strategy, attribute, plain[path])


def _holds_arrays(value: Any) -> bool:
    values = value.values() if isinstance(value, dict) else value
    return (
        isinstance(value, dict | list)
        and bool(value)
        and all(isinstance(inner, np.ndarray | np.generic) for inner in values)
    )
