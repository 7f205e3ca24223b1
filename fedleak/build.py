"""Make data, models, attacks and defences from a run's configuration."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedleak.attacks.base import Attack
from fedleak.config import RunConfig
from fedleak.data import PrivateData, partition
from fedleak.defenses import Defense
from fedleak.errors import BadInput, require, unknown_name
from fedleak.models.first_batch import FirstBatch, first_batch
from fedleak.registry import Plugin, build, load_plugin
from fedleak.runs.scoring import SCORINGS
from fedleak.runtime.seeds import derive_seed
from fedleak.servers.base import MaliciousServer
from fedleak.updates.files import check_name, opened
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate


def without_download(data: Plugin) -> Plugin:
    """A stored run's data set, which must not download or write anything where it is read.

    Args:
        data: the data set as the run's configuration names it.
    """
    if "download" not in data.init_args:
        return data
    return replace(data, init_args=data.init_args | {"download": False})


def make_data(config: RunConfig) -> PrivateData:
    """Load the data set of a configuration.

    Raises:
        BadInput: if the class is not a data set of fedleak, or the data cannot be loaded.
    """
    data: Any = build("data", config.data)
    if data.kind not in SCORINGS:
        raise unknown_name("kind of data", data.kind, SCORINGS)
    data.prepare_data()
    data.setup()
    return cast(PrivateData, data)


def make_attacks(config: RunConfig) -> list[Attack]:
    """Make the attacks of a configuration.

    Raises:
        BadInput: if a class is not an attack, its settings are invalid, or two attacks have the
            same name.
    """
    attacks: list[Attack] = []
    for plugin in config.attacks:
        attack = build("attacks", plugin)
        require(
            attack.name not in [other.name for other in attacks],
            f"Expected `attacks` of different names, got {attack.name} twice: try other settings "
            "by `fedleak attack` on the run.",
        )
        check_name("an attack", attack.name)
        attacks.append(attack)
    return attacks


def make_defenses(config: RunConfig) -> list[Defense]:
    """Make the defences of a configuration.

    Raises:
        BadInput: if a class is not a defence, its settings are invalid, or it does not fit the
            protocol or its place among the other defences.
    """
    defenses: list[Defense] = []
    for plugin in config.defenses:
        defense = build("defenses", plugin)
        reason = defense.refuses(config.federation.protocol)
        require(reason is None, f"Expected defences that fit the protocol, but {reason}.")
        require(
            not (defense.recomputes_gradient and defenses),
            f"Expected {defense.name} before the other `defenses`, as it recomputes the gradient "
            "and would undo them, got it after them: change their order.",
        )
        defenses.append(defense)
    return defenses


def make_server(config: RunConfig) -> MaliciousServer | None:
    """Make the malicious server of a configuration; None if the server is honest.

    Raises:
        BadInput: if the class is not a malicious server, its settings are invalid, or an attack has
            its name.
    """
    if config.server is None:
        return None
    server: MaliciousServer = build("servers", config.server)
    check_name("the malicious server", server.name)
    return server


def public_samples(config: RunConfig, data: PrivateData) -> Tensor | None:
    """The public samples of a malicious server: the first test samples; None if there are none.

    Args:
        config: the run's configuration.
        data: its data.
    """
    number = len(data.test_set) if config.public is None else config.public
    number = min(number, len(data.test_set))
    if number == 0:
        return None
    return torch.stack([data.test_set[position][0] for position in range(number)])


def under_orders(config: RunConfig, entries: Mapping[str, Any]) -> tuple[RunConfig, float | None]:
    """What a client does under the training configuration that it was sent.

    Args:
        config: the run's configuration.
        entries: the entries of the training configuration; those that clients do not obey have no
            effect.

    Returns:
        The configuration with the client's batch size and number of local epochs, and its learning
        rate; None if it keeps its own.

    Raises:
        BadInput: if an entry that clients obey is not valid.
    """
    told = {s: entries[name] for name, s in config.federation.obeys.items() if name in entries}
    for setting, value in told.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        whole = setting != "learning_rate"
        require(
            number and (isinstance(value, int) and value >= 1 if whole else 0 < value < math.inf),
            f"Expected a {'whole number from 1' if whole else 'positive number'} as `{setting}` in "
            f"the training configuration, got {value!r:.60}.",
        )
    rate = told.pop("learning_rate", None)
    federation = replace(config.federation, **told) if told else config.federation
    return replace(config, federation=federation), None if rate is None else float(rate)


def make_mods(config: RunConfig) -> list[Callable[..., Any]]:
    """Make Flower's mods around a client's training, the first one outermost.

    Raises:
        BadInput: if a mod is not callable, or its settings are invalid.
    """
    mods: list[Callable[..., Any]] = []
    for plugin in config.mods:
        try:
            mod = build("mods", plugin)
        except ValueError as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(
                f"Expected settings that `{plugin.class_path}` takes, got {plugin.init_args}: "
                f"{error}"
            ) from error
        mods.append(mod)
    return mods


def build_model(config: RunConfig, data: PrivateData) -> nn.Module:
    """Make the model that clients train; its weights depend on torch's random state.

    Raises:
        BadInput: if its settings are invalid, the class is not a LightningModule, or the malicious
            server cannot change it.
    """
    return _changed(config, data, _own_model(config, data))


def _own_model(config: RunConfig, data: PrivateData) -> nn.Module:
    """Make a configuration's model for a data set."""
    model: nn.Module = build(
        "models", config.model, input_shape=data.input_shape, num_classes=data.num_classes
    )
    return model


def _changed(config: RunConfig, data: PrivateData, model: nn.Module) -> nn.Module:
    """What a malicious server that changes the model makes of it."""
    if config.server is None:
        return model
    try:
        kind = load_plugin("servers", config.server.class_path)
    except BadInput:
        # A stored run may name a server that is not trusted or not installed here. If it changed
        # the model, the run's updates do not fit this one, which is said then.
        return model
    if "model" not in kind.changes:
        return model
    server: MaliciousServer = build("servers", config.server)
    return server.changed_model(model, data.input_shape)


def make_model(config: RunConfig, data: PrivateData) -> nn.Module:
    """Make the global model before the first round; the same seed gives the same weights.

    Raises:
        BadInput: if its settings or weights do not fit, or the class is not a LightningModule.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed))
            model = _own_model(config, data)
            if config.weights is not None:
                _load(model, config)
            model = _changed(config, data, model)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        if isinstance(error, BadInput) and data.kind == "images":
            raise
        text = " ".join(str(error).split())
        raise BadInput(
            f"Expected a model for {data.kind} of shape {data.input_shape} ({config.data_name}), "
            f"but {config.model_name} cannot be made for them: {text}"
        ) from error
    first_batch_of(config, data, model)
    return model


def _load(model: nn.Module, config: RunConfig) -> None:
    path = Path(str(config.weights)).expanduser()
    require(path.is_file(), f"Expected a file with weights at {path} (`weights`), found none.")
    with opened(path) as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    wrong = sorted(name for name in wanted | shapes if wanted.get(name) != shapes.get(name))
    if wrong:
        name = wrong[0]
        raise BadInput(
            f"Expected the weights of {config.model_name} in {path} (`weights`), such as `{name}` "
            f"of shape {wanted.get(name, 'none')}, got {shapes.get(name, 'none')}: give the model "
            "whose weights they are."
        )
    model.load_state_dict(found)


def client_samples(config: RunConfig, data: PrivateData) -> list[list[int]]:
    """Positions in the training set of every client's samples.

    Raises:
        BadInput: if a client would have fewer samples than a batch.
    """
    federation = config.federation
    parts = partition(
        data.train_set.labels.numpy(),
        federation.size,
        kind=federation.partition,
        alpha=federation.alpha,
        shards_per_client=federation.shards_per_client,
        seed=config.seed,
    )
    smallest = min(range(len(parts)), key=lambda client: len(parts[client]))
    require(
        len(parts[smallest]) >= federation.batch_size,
        f"Expected every client to have a batch of `federation.batch_size` "
        f"{federation.batch_size}, but client {smallest} has {len(parts[smallest])} of the "
        f"{len(data.train_set)} samples: lower it"
        f"{'.' if federation.partition == 'one_each' else ' or `federation.clients`.'}",
    )
    return [part.tolist() for part in parts]


def usual_samples(config: RunConfig, data: PrivateData) -> int:
    """The number of samples behind an update that a server expects of each client, at least 1.

    Args:
        config: the run's configuration.
        data: its data.
    """
    federation = config.federation
    samples = len(data.train_set) // federation.size
    whole = federation.protocol == "fedavg"
    return max(1, samples if whole else min(samples, federation.batch_size))


def most_examples(config: RunConfig, data: PrivateData, clients: int = 1) -> int:
    """The largest number of samples that an update can be of: an attack allocates memory for it.

    Args:
        config: the run's configuration.
        data: its data.
        clients: number of clients whose updates came as one.
    """
    federation, most = config.federation, len(data.train_set)
    whole = federation.protocol == "fedavg" or "batch_size" in federation.obeys.values()
    return most if whole else min(most, clients * config.federation.batch_size)


def first_batch_of(
    config: RunConfig, data: PrivateData, model: nn.Module, samples: int = 0
) -> FirstBatch:
    """Modes and optimiser of a client of a run at its first batch.

    Args:
        config: the run's configuration.
        data: gives the shape of the samples.
        model: the global model.
        samples: the client's number of samples. If 0, that of a batch.

    Raises:
        BadInput: if the model fails before its first batch, or has no optimiser.
    """
    federation = config.federation
    (sample,), (label,) = data.train_set.batch([0])
    return first_batch(
        model,
        data.input_shape,
        train=federation.mode == "train",
        samples=samples if samples > 0 else federation.batch_size,
        batch_size=federation.batch_size,
        epochs=federation.local_epochs if federation.protocol == "fedavg" else None,
        example=(sample, label),
    )


def knowledge_of(
    config: RunConfig,
    data: PrivateData,
    model: nn.Module,
    *,
    labels: Tensor | None,
    update: InterceptedUpdate | None = None,
    entries: Mapping[str, Any] | None = None,
) -> Knowledge:
    """The prior knowledge of a run's server about an update.

    Args:
        config: the run's configuration.
        data: gives shape, classes and scaling.
        model: the architecture; its modules are set to the modes that a client's have.
        labels: the true labels, if the threat model says that the server knows them. Without
            classes, all labels are 0.
        update: the update. If None, the update of a client with a single batch is assumed.
        entries: the training configuration that a malicious server sent to the client. If None,
            that of an honest server.
    """
    config, rate = under_orders(config, entries or {})
    federation = config.federation
    samples = federation.batch_size if update is None else update.num_examples
    clients = 1 if update is None else update.clients
    # What each of them has is not known, where they do not have equally many.
    rest = samples % clients
    numbers = tuple(samples // clients + (client < rest) for client in range(clients))
    if data.num_classes == 1 and not data.train_set.labels.is_floating_point():
        # With a single class there is no label to know or to recover.
        labels = torch.zeros(samples, dtype=torch.int64)
    first = first_batch_of(config, data, model, samples // clients)
    first.set_on(model)
    training = first.training
    if rate is not None:
        others = {
            pattern: {name: value for name, value in own.items() if name != "learning_rate"}
            for pattern, own in training.per_parameter.items()
        }
        training = replace(training, learning_rate=rate, per_parameter=others)
    return Knowledge(
        model=model,
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        mean=data.mean,
        std=data.std,
        num_samples=samples,
        labels=labels,
        protocol=federation.protocol,
        local_training=training,
        label_recovery=config.victims.label_recovery,
        value_range=data.value_range,
        clients=numbers if rest else clients,
        aggregation="weighted_mean" if update is None else update.aggregation,
        defense=make_defenses(config)[0] if config.victims.defense == "known" else None,
    )
