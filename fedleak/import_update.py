"""Make the folder of a run from a file with somebody's gradient, weights or delta."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from fedleak.build import knowledge_of, make_data, make_model
from fedleak.config import Federation, RunConfig, Victims
from fedleak.errors import BadInput, require, unknown_name
from fedleak.preflight import prepare
from fedleak.registry import Plugin, class_path, load_class, read_plugin
from fedleak.runs.folder import RunFolder
from fedleak.runs.summary import data_facts, write_summary
from fedleak.updates.evidence import check
from fedleak.updates.files import LARGEST, Tensors, opened
from fedleak.updates.knowledge import Aggregation
from fedleak.updates.naming import by_name
from fedleak.updates.update import PROTOCOLS, InterceptedUpdate

Kind = Literal["gradient", "weights", "delta"]
SUFFIXES = (".pt", ".pth", ".npz", ".safetensors")
# Keys under which files of weights have them beside other things.
INNER = ("state_dict", "model_state_dict")
# The same, where no other key has tensors by name.
ALONE = ("model", "net")


@dataclass(frozen=True)
class Facts:
    """What is known of an update in a file.

    Args:
        model: the model's short name, or the path of its class, as ``module:Class``.
        settings: the arguments with which the model is made.
        input_shape: shape of an image, ``(C, H, W)``.
        classes: number of classes.
        kind: what the file holds.
        sent: a file with the weights that the client was sent. If None, they are those with which
            the model is made, which then must not be random.
        learning_rate: the client's learning rate, of plain SGD; needed for weights and delta of a
            model without an optimiser of its own.
        num_samples: number of samples that the clients used, all together.
        batch_size: size of a client's batches. If None, all its samples are one batch.
        epochs: number of its epochs (weights and delta).
        mode: mode of the client's model.
        mean: what the client subtracts from each channel, on the scale [0, 1].
        std: by what it divides each channel.
        clients: number of clients whose updates came as one, of equally many samples each.
        aggregation: how they were combined; see :class:`fedleak.updates.knowledge.Knowledge`.
    """

    model: str
    settings: Mapping[str, Any]
    input_shape: tuple[int, ...]
    classes: int
    kind: Kind
    sent: str | None = None
    learning_rate: float | None = None
    num_samples: int = 1
    batch_size: int | None = None
    epochs: int = 1
    mode: Literal["train", "eval"] = "train"
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    clients: int = 1
    aggregation: Aggregation = "weighted_mean"


def import_update(file: Path, facts: Facts, output: Path, *, overwrite: bool = False) -> list[str]:
    """Write the folder of a run that holds one update, for ``fedleak attack``.

    Args:
        file: a .pt file (tensors by name or in a list), an .npz file without pickled objects or a
            .safetensors file.
        facts: what is known of it.
        output: the folder.
        overwrite: whether to replace a run's folder there.

    Returns:
        What is amiss with the update, a sentence each; empty if nothing is.

    Raises:
        BadInput: if a file cannot be read or does not fit the model, the facts are not valid, or
            the folder exists; nothing has been written then.
    """
    require(facts.kind in PROTOCOLS, str(unknown_name("kind", facts.kind, PROTOCOLS)))
    require(facts.num_samples >= 1, f"Expected samples from 1, got {facts.num_samples}.")
    require(
        facts.clients >= 1 and facts.num_samples % facts.clients == 0,
        f"Expected `clients` from 1 that divide {facts.num_samples} samples, got {facts.clients}.",
    )
    values = read_arrays(file)
    config = _config(facts, output)
    parts = prepare(config, trains=False)
    model = parts.models[""]
    _load_sent(model, config, facts.sent)
    given: dict[str, Any] = {facts.kind: values}
    update = InterceptedUpdate.of(model, num_examples=facts.num_samples, **given)
    update = replace(
        update, model=config.model_name, clients=facts.clients, aggregation=facts.aggregation
    )
    update.check(model)
    knowledge = knowledge_of(config, parts.data, model, labels=None, update=update)
    findings = check(model, update, knowledge)
    zero = [finding for finding in findings if finding.kind == "zero"]
    require(not zero, f"Expected an update, but {' '.join(map(str, zero))}.")
    folder = RunFolder(output)
    folder.open(config, resume=False, overwrite=overwrite)
    update.save(folder.updates())
    federation: dict[str, Any] = {
        "rounds": 1, "clients": 1, "failures": 0, "accuracy": None, "lost_rounds": [],
        "diverged_round": None,
    }  # fmt: skip
    write_summary(folder, config, "complete", federation, data_facts(config, parts.data))
    return [str(finding) for finding in findings]


def read_arrays(file: Path) -> dict[str, Any] | list[Any]:
    """The arrays in a file, by name, or in order where they have no names.

    Args:
        file: see :func:`import_update`.

    Raises:
        BadInput: if it is missing, of another kind, damaged, pickled, or too large.
    """
    require(
        file.suffix in SUFFIXES,
        f"Expected a file of {', '.join(SUFFIXES)}, got {file}: save a dict or a list of tensors "
        "by `torch.save`, or arrays by `numpy.savez`.",
    )
    if file.suffix == ".safetensors":
        with opened(file) as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    require(file.is_file(), f"Expected a file at {file}, found none.")
    size = file.stat().st_size
    require(size <= LARGEST, f"Expected at most {LARGEST:,} bytes in {file}, got {size:,}.")
    try:
        found = _read_npz(file) if file.suffix == ".npz" else _read_torch(file)
    except BadInput:
        raise
    except Exception as error:  # damaged files make numpy, zipfile and torch raise all kinds
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise BadInput(
            f"Expected tensors or numeric arrays in {file}, which can be read without running code "
            f"of the file, but reading fails ({type(error).__name__}: {reason:.150})."
        ) from error
    return found


def _read_torch(file: Path) -> dict[str, Any] | list[Any]:
    found: Any = torch.load(file, map_location="cpu", weights_only=True)
    for name in INNER:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if isinstance(found, Mapping):
        inner = [name for name, value in found.items() if _are_tensors(value)]
        require(
            len(inner) <= 1,
            f"Expected tensors by name under one key of {file}, got them under "
            f"{', '.join(f'`{name}`' for name in inner[:5])}.",
        )
        return dict(found[inner[0]] if inner and inner[0] in ALONE else found)
    if isinstance(found, list | tuple):
        return list(found)
    raise BadInput(f"Expected a dict or a list of tensors in {file}, got {type(found).__name__}.")


def _are_tensors(value: Any) -> bool:
    values = list(value.values()) if isinstance(value, Mapping) else []
    return bool(values) and all(isinstance(item, torch.Tensor) for item in values)


def _read_npz(file: Path) -> dict[str, Any] | list[Any]:
    with zipfile.ZipFile(file) as archive:
        size = sum(member.file_size for member in archive.infolist())
    require(size <= LARGEST, f"Expected at most {LARGEST:,} bytes in {file}, got {size:,}.")
    with np.load(file, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    # numpy's own names of arrays that were saved without.
    listed = list(found) == [f"arr_{position}" for position in range(len(found))]
    return list(found.values()) if listed else found


def _config(facts: Facts, output: Path) -> RunConfig:
    path = class_path("models", facts.model.replace(":", "."))
    found, settings = load_class(path), dict(facts.settings)
    if hasattr(found, "configure_optimizers"):
        require(
            facts.learning_rate is None,
            f"Expected no `--learning_rate` of {found.__name__}, whose own optimiser has one, got "
            f"{facts.learning_rate}: see `--model.learning_rate`.",
        )
        model = read_plugin("models", "model", {"class_path": path, "init_args": settings})
    else:
        require(
            facts.kind == "gradient" or facts.learning_rate is not None,
            f"Expected `--learning_rate` where the kind is {facts.kind}, got none.",
        )
        rate = {} if facts.learning_rate is None else {"learning_rate": facts.learning_rate}
        arguments = {"module": path, "settings": settings, **rate}
        model = Plugin("fedleak.wrapped.Wrapped", arguments)
    data = {
        "shape": list(facts.input_shape), "classes": facts.classes, "samples": facts.num_samples,
        "mean": list(facts.mean), "std": list(facts.std),
    }  # fmt: skip
    return RunConfig(
        data=Plugin("fedleak.data.unseen.Unseen", data),
        model=model,
        output=str(output),
        federation=Federation(
            clients=1,
            protocol="fedsgd" if facts.kind == "gradient" else "fedavg",
            batch_size=facts.batch_size or facts.num_samples // facts.clients,
            local_epochs=facts.epochs,
            mode=facts.mode,
        ),
        victims=Victims(labels="recovered"),
    )


def _load_sent(model: nn.Module, config: RunConfig, sent: str | None) -> None:
    """Load the weights that were sent into the model."""
    own = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = [name for name, _ in model.named_parameters()]
    if sent is None:
        other = _made_again(config)
        random = [name for name in parameters if not torch.equal(own[name], other[name])]
        require(
            not random,
            f"Expected `--sent`, a file with the weights that the client was sent, as "
            f"{type(model).__name__} is made with random weights, such as `{(random or [''])[0]}`.",
        )
        return
    found = by_name(read_arrays(Path(sent)), "sent weights", parameters, own)
    missing = [name for name in parameters if name not in found]
    require(
        not missing,
        f"Expected all weights that were sent in {sent}, got none of `{(missing or [''])[0]}`.",
    )
    model.load_state_dict(own | found)


def _made_again(config: RunConfig) -> Tensors:
    """The weights of the same model under another seed."""
    other = replace(config, seed=config.seed + 1)
    return make_model(other, make_data(other)).state_dict()
