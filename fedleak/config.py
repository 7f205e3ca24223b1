"""The configuration of a run: what config.yaml holds."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml

from fedleak.errors import BadInput, require, unknown_name
from fedleak.privacy.mechanisms import DELTA, check_delta
from fedleak.registry import Plugin, load_class, load_plugin, plugin_entry, read_plugin, short_name
from fedleak.runtime.safe_yaml import read_yaml
from fedleak.schema import check_keys, check_value, check_values, parameters_of, shown
from fedleak.updates.knowledge import LabelRecovery

Labels = Literal["known", "recovered", LabelRecovery]
Space = Literal["pixels", "normalised"]
VERSIONS_OF = ("fedleak", "torch", "pytorch-lightning", "flwr", "numpy", "scikit-image")
DEFAULT_CLIENTS = 8
OBEYED = ("learning_rate", "local_epochs", "batch_size")
"""Settings of a client that it may take from the training configuration."""
ROUND_ENTRY = "server-round"
"""The entry of the training configuration that names the round."""
BOTTLENECK = "precode"
"""The setting of a model that puts a bottleneck into it; the baseline is the model without it."""


@dataclass(frozen=True)
class Federation:
    """How the simulated federation trains.

    Args:
        clients: number of clients, at least 1. If None, 8, or of the partition one_each as many as
            there are training samples, which is known once the data are loaded.
        clients_per_round: number of clients that train in a round, at least 1, drawn anew in every
            round. If None, all, or as ``strategy_options`` say.
        rounds: number of rounds, at least 1.
        protocol: fedsgd: a client sends the gradient of one batch; fedavg: it sends its weights
            after its local epochs.
        batch_size: size of a client's batches, at least 1.
        local_epochs: epochs of local training in a round (fedavg), at least 1.
        mode: whether clients train with their model in train mode (dropout on, batch norm using
            the batch's statistics) or in eval mode.
        partition: how the training samples are partitioned: iid, dirichlet (over the labels),
            shards (of samples sorted by label), or one_each (client i has only sample i, as if
            every client were a user; further samples are not used; without ``clients``, every
            sample has one).
        alpha: concentration of the Dirichlet partition, positive; smaller is less even.
        shards_per_client: number of shards that a client gets, at least 1.
        strategy: how the server aggregates: a class of flwr.serverapp.strategy or a dotted path.
        strategy_options: keyword arguments of that class, such as eta for FedAdam. A class around
            another strategy, as Flower's for differential privacy, takes the other's name as
            ``strategy``, FedAvg by default, whose options are given beside its own.
        learning_rate_decay: factor by which the server's learning rate (eta of FedAdam and its kin,
            server_learning_rate of FedAvgM) is multiplied after every round, above 0 and at most 1.
        obeys: what clients take from the training configuration that the server sends: name of the
            entry -> ``learning_rate`` (of every optimiser, without schedule), ``local_epochs``
            (fedavg) or ``batch_size``. An entry that is not sent leaves the client's own value. An
            honest server sends none.
        mods: Flower's client mods around the training (fedavg), the first one outermost; each
            with class_path, such as flwr.clientapp.mod.LocalDpMod, and init_args; Flower's mods
            that clip are ``FixedClipping`` and ``AdaptiveClipping`` of
            fedleak.federation.clipping_mods. LocalDpMod also
            adds noise to batch-norm statistics, where a negative variance gives NaN: use
            resnet18 with `norm: group`.
        client_evaluation: whether clients also evaluate the global model, each on its part of the
            test samples; the server always evaluates it on all of them.
        evaluate_every: the server evaluates the global model before the first round, after every so
            many rounds, at least 1, and after the last.
        client_timeout: seconds after which a client counts as failed, positive.
        cpus_per_client: CPUs that a client occupies; 0.5 runs two clients on each.
        gpus_per_client: GPUs that a client occupies, at least 0.
        ray_address: address of a running Ray cluster. If None, a private one is started and
            stopped.

    Raises:
        BadInput: if a value is out of its range.
    """

    clients: int | None = None
    clients_per_round: int | None = None
    rounds: int = 1
    protocol: Literal["fedsgd", "fedavg"] = "fedsgd"
    batch_size: int = 1
    local_epochs: int = 1
    mode: Literal["train", "eval"] = "train"
    partition: Literal["iid", "dirichlet", "shards", "one_each"] = "iid"
    alpha: float = 0.5
    shards_per_client: int = 2
    strategy: str = "FedAvg"
    strategy_options: dict[str, Any] = field(default_factory=dict)
    learning_rate_decay: float = 1.0
    obeys: dict[str, str] = field(default_factory=dict)
    mods: list[dict[str, Any]] = field(default_factory=list)
    client_evaluation: bool = False
    evaluate_every: int = 1
    client_timeout: float = 600.0
    cpus_per_client: float = 1.0
    gpus_per_client: float = 0.0
    ray_address: str | None = None

    def __post_init__(self) -> None:
        for name in (
            "clients", "rounds", "batch_size", "local_epochs", "shards_per_client",
            "evaluate_every",
        ):  # fmt: skip
            value = getattr(self, name)
            require(
                value is None or value >= 1,
                f"Expected `federation.{name}` to be at least 1, got {value}.",
            )
        sampled, size = self.clients_per_round, self.known_size
        limits = "at least 1" if size is None else f"from 1 to {size}, the number of clients"
        require(
            sampled is None or (sampled >= 1 and (size is None or sampled <= size)),
            f"Expected `federation.clients_per_round` to be {limits}, got {sampled}.",
        )
        require(
            0 < self.learning_rate_decay <= 1,
            "Expected `federation.learning_rate_decay` to be above 0 and at most 1, "
            f"got {self.learning_rate_decay}.",
        )
        for name in ("alpha", "client_timeout", "cpus_per_client"):
            value = getattr(self, name)
            require(value > 0, f"Expected `federation.{name}` to be positive, got {value}.")
        require(
            self.gpus_per_client >= 0,
            f"Expected `federation.gpus_per_client` to be at least 0, got {self.gpus_per_client}.",
        )
        self._check_obeyed()
        for mod in self.mods:
            require(
                isinstance(mod, Mapping),
                "Expected `federation.mods` to hold mappings of class_path and init_args, got "
                f"{shown(mod)}.",
            )
            plugin_entry("federation.mods", mod)
        require(
            not self.mods or self.protocol == "fedavg",
            "Expected `federation.protocol` to be fedavg where `federation.mods` are given, as "
            f"Flower's mods work on weights, got {self.protocol}: set it, or use `defenses`.",
        )

    def _check_obeyed(self) -> None:
        for entry, setting in self.obeys.items():
            if setting not in OBEYED:
                raise unknown_name(f"setting behind `federation.obeys.{entry}`", setting, OBEYED)
            require(
                entry != ROUND_ENTRY,
                f"Expected names of the training configuration in `federation.obeys`, got `{entry}`"
                ", by which the server tells the round.",
            )
        settings = list(self.obeys.values())
        require(
            len(set(settings)) == len(settings),
            f"Expected each setting once in `federation.obeys`, got {', '.join(settings)}.",
        )
        require(
            "local_epochs" not in settings or self.protocol == "fedavg",
            "Expected `federation.protocol` to be fedavg where clients obey a number of local "
            f"epochs, got {self.protocol}.",
        )

    @property
    def known_size(self) -> int | None:
        """Number of clients; None if it is that of the samples, which are not loaded yet."""
        one_each = self.partition == "one_each"
        return DEFAULT_CLIENTS if self.clients is None and not one_each else self.clients

    @property
    def size(self) -> int:
        """Number of clients.

        Raises:
            BadInput: if it is that of the samples, which are not loaded yet.
        """
        if self.known_size is None:
            raise BadInput("Expected `federation.clients`, got none before the data are loaded.")
        return self.known_size


@dataclass(frozen=True)
class Victims:
    """Which clients' updates the server stores and attacks.

    Args:
        clients: numbers of the clients, from 0. If None, all, of the partition one_each all users.
        rounds: numbers of the rounds, from 1. If None, all.
        labels: known: the attacks are given the true labels, as the papers assume; recovered: they
            recover them from the update by bias_counts; a method's name: by that method.
            bias_counts also recovers repeated labels, idlg is for one sample, row_minima needs no
            bias in the classifier but recovers every label at most once.
        when: after: attack when the federation has ended; during: attack within the round.
        aggregated: whether the server sees only the mean of the victims' updates of a round,
            weighted by their numbers of samples, as behind secure aggregation. It is then one
            update, as of the first of them; a malicious server sends the same to all of them.
        defense: whether the attacks are told the defence, with its settings: unknown: they take an
            update for what the client computed; known: entries that the defence left out are
            missing to them, those that it clipped are bounds, those that it rounded are intervals.
            Which of the two an update bears out stands among the findings.

    Raises:
        BadInput: if a list is empty, a number out of range, or the method unknown, or a mean is to
            be attacked within the round.
    """

    clients: list[int] | None = None
    rounds: list[int] | None = None
    labels: Labels = "known"
    when: Literal["after", "during"] = "after"
    aggregated: bool = False
    defense: Literal["unknown", "known"] = "unknown"

    def __post_init__(self) -> None:
        for name, lowest in (("clients", 0), ("rounds", 1)):
            numbers = getattr(self, name)
            require(
                numbers is None or (len(numbers) > 0 and min(numbers) >= lowest),
                f"Expected `victims.{name}` to be one or more numbers from {lowest}, "
                f"got {numbers}.",
            )
        require(
            not self.aggregated or self.when == "after",
            "Expected `victims.when` to be after where `victims.aggregated` is true, got during.",
        )
        # The command line checks this itself; a configuration made in Python does not.
        if self.labels not in get_args(Labels):
            raise unknown_name("value of `victims.labels`", self.labels, get_args(Labels))
        if self.defense not in ("unknown", "known"):
            raise unknown_name(
                "value of `victims.defense`", str(self.defense), ("unknown", "known")
            )

    @property
    def label_recovery(self) -> LabelRecovery:
        """The method that recovers labels that are not known."""
        if self.labels == "known" or self.labels == "recovered":
            return "bias_counts"
        return self.labels

    @property
    def labels_text(self) -> str:
        """Where the labels come from, as text for tables."""
        default = self.labels in ("known", "recovered")
        return self.labels if default else f"recovered by {self.labels}"

    @property
    def defense_text(self) -> str:
        """Whether the attacks are told the clients' defence, as text for tables."""
        return f"{self.defense} to the attacker"

    @property
    def first(self) -> int:
        """Number of the client as whose the mean of the victims' updates is stored."""
        return min(self.clients or [0])

    def includes(self, round_: int, client: int) -> bool:
        """Whether this client's update in this round is stored and attacked."""
        return (self.clients is None or client in self.clients) and (
            self.rounds is None or round_ in self.rounds
        )


@dataclass(frozen=True)
class Metrics:
    """How reconstructions are scored.

    Args:
        space: pixels: images scaled back to [0, 1], data range 1; normalised: images as the model
            receives them, data range 2, as in the PRECODE paper's code.
        success_threshold: smallest SSIM at which a reconstruction counts as a success, -1 to 1.
        lpips: whether to measure the perceptual similarity LPIPS on pixels as well, in an
            additional column. It needs AlexNet's weights in torch hub's folder; nothing is
            downloaded.
        item_threshold: smallest value at which an item of a reconstructed interaction vector counts
            as found, above 0 and at most 1. The other settings apply to images.

    Raises:
        BadInput: if a threshold is out of range.
    """

    space: Space = "pixels"
    success_threshold: float = 0.6
    lpips: bool = False
    item_threshold: float = 0.6

    def __post_init__(self) -> None:
        require(
            -1 <= self.success_threshold <= 1,
            "Expected `metrics.success_threshold` to be from -1 to 1, "
            f"got {self.success_threshold}.",
        )
        require(
            0 < self.item_threshold <= 1,
            "Expected `metrics.item_threshold` to be above 0 and at most 1, "
            f"got {self.item_threshold}.",
        )


@dataclass(frozen=True)
class Budget:
    """The most of a client's privacy that a run may spend.

    Args:
        epsilon: the largest epsilon that any client may come to, positive.
        delta: the delta at which it is computed, above 0 and below 1.

    Raises:
        BadInput: if a value is out of its range.
    """

    epsilon: float
    delta: float = DELTA

    def __post_init__(self) -> None:
        require(
            0 < self.epsilon < math.inf,
            f"Expected `privacy.budget.epsilon` to be positive, got {self.epsilon}.",
        )
        check_delta("privacy.budget", self.delta)


@dataclass(frozen=True)
class Privacy:
    """Limits of what a run spends of its clients' privacy.

    Args:
        budget: before the first round in which a client would exceed it, the run ends. If None,
            what is spent is counted at a delta of 1e-5, and nothing ends the run.
    """

    budget: Budget | None = None

    def __post_init__(self) -> None:
        given: Any = self.budget
        if isinstance(given, Mapping):  # as in a file
            require("epsilon" in given, "Expected `privacy.budget.epsilon`, got none.")
            object.__setattr__(self, "budget", Budget(**given))

    @property
    def delta(self) -> float:
        """The delta at which effective epsilons are computed."""
        return DELTA if self.budget is None else self.budget.delta


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run.

    Args:
        data: the data set.
        model: the model.
        attacks: the attacks, in order.
        defenses: the defences, in the order in which a client applies them.
        output: the run's folder.
        seed: seed of every random draw, at least 0.
        baseline: whether to run the federation also with the model without its bottleneck.
        device: where attacks compute, such as ``cpu`` or ``cuda``.
        federation: how the federation trains.
        victims: which updates are attacked.
        metrics: how reconstructions are scored.
        privacy: what the run may spend of its clients' privacy.
        weights: a safetensors file with the initial weights of the federation, such as a run's
            ``updates/r0005-global.safetensors``, which its server sent in round 5. If None, the
            model's own initialisation.
        server: the malicious server, which changes what it sends to the ``victims``; their updates
            are kept out of the global model. If None, the server sends what an honest one does.
        public: number of the test samples that a malicious server has as public samples, at least
            0. If None, all of them.

    Raises:
        BadInput: if settings are out of range or contradict each other.
    """

    data: Plugin
    model: Plugin
    attacks: tuple[Plugin, ...] = ()
    defenses: tuple[Plugin, ...] = ()
    output: str = "runs/run"
    seed: int = 0
    baseline: bool = False
    device: str = "cpu"
    federation: Federation = Federation()
    victims: Victims = Victims()
    metrics: Metrics = Metrics()
    privacy: Privacy = Privacy()
    weights: str | None = None
    server: Plugin | None = None
    public: int | None = None

    def __post_init__(self) -> None:
        require(
            self.public is None or self.public >= 0,
            f"Expected `public` to be at least 0, got {self.public}.",
        )
        require(
            bool(self.output.strip()),
            "Expected a folder as `output`, got an empty text: write `.` for this one.",
        )
        require(self.seed >= 0, f"Expected `seed` to be at least 0, got {self.seed}.")
        require(self.seed < 2**63, f"Expected `seed` to be below 2^63, got {shown(self.seed)}.")
        federation, victims = self.federation, self.victims
        for name, chosen, number, first in (
            ("clients", victims.clients, federation.known_size, 0),
            ("rounds", victims.rounds, federation.rounds, 1),
        ):
            require(
                chosen is None or number is None or max(chosen) < first + number,
                f"Expected `victims.{name}` to be at most {first - 1 + (number or 0)}, as the "
                f"federation has {number} {name}, got {chosen}.",
            )
        number = len(self.defenses)
        require(
            victims.defense == "unknown" or number == 1,
            "Expected one of `defenses` where `victims.defense` is known, as attacks undo no more "
            f"than one, got {number or 'none'}: leave `victims.defense` out or change `defenses`.",
        )
        require(
            not self.baseline or bool(self.model.init_args.get(BOTTLENECK)),
            f"Expected `model.{BOTTLENECK}` to be set where `baseline` is true, since the baseline "
            "is the model without its bottleneck: set it, or leave `baseline` out.",
        )
        require(
            not (self.baseline and self.weights),
            "Expected no `weights` where `baseline` is true, since no weights fit the model with "
            "and without its bottleneck: leave one of them out.",
        )

    def with_clients(self, samples: int) -> Self:
        """The configuration with its number of clients, if it was left out.

        Args:
            samples: number of training samples, each of which may have a client of its own.

        Raises:
            BadInput: if there are fewer than the clients of a round, or than a victim's number.
        """
        if self.federation.clients is not None:
            return self
        number = self.federation.known_size or samples
        return replace(self, federation=replace(self.federation, clients=number))

    @property
    def variants(self) -> dict[str, "RunConfig"]:
        """Subfolder -> configuration of each federation of the run; the baseline's comes first."""
        if not self.baseline:
            return {"": self}
        settings = {n: value for n, value in self.model.init_args.items() if n != BOTTLENECK}
        baseline = replace(self, model=replace(self.model, init_args=settings), baseline=False)
        return {"baseline": baseline, "": replace(self, baseline=False)}

    @property
    def model_name(self) -> str:
        """The model's name in tables, such as ``smlp+precode``."""
        name = short_name("models", self.model.class_path)
        try:
            label = getattr(load_class(self.model.class_path), "label", None)
        except BadInput:
            label = None
        return label(name, self.model.init_args) if callable(label) else name

    @property
    def mods(self) -> tuple[Plugin, ...]:
        """Flower's client mods around the training."""
        return tuple(read_plugin("mods", "federation.mods", mod) for mod in self.federation.mods)

    @property
    def defense_name(self) -> str:
        """The defences' names and settings in tables, such as ``pruning(ratio=0.9)``, or ``none``.

        Flower's mods come last, the innermost first, in the order in which they act on the update.
        """
        names = [_signature("defenses", plugin) for plugin in self.defenses]
        names += [_signature("mods", plugin) for plugin in reversed(self.mods)]
        return _printable("+".join(names)) or "none"

    @property
    def server_text(self) -> str:
        """What the server does, in the terms of threat models, for tables."""
        if self.server is None:
            return "honest-but-curious server"
        try:
            kind = getattr(load_class(self.server.class_path), "threat_model", "malicious server")
        except BadInput:
            kind = "malicious server"
        return _printable(f"{kind}, {_signature('servers', self.server)}")

    @property
    def data_name(self) -> str:
        """The data set's name in tables; for an npz file, the name of the file."""
        name = short_name("data", self.data.class_path)
        path = self.data.init_args.get("path")
        return _printable(Path(str(path)).stem) if name == "npz" and path else name

    def to_dict(self) -> dict[str, Any]:
        """The configuration as nested mappings of plain values, the main settings first."""
        plain = asdict(self)
        for name in ("attacks", "defenses"):
            plain[name] = list(plain[name])
        order = ["output", "seed", "data", "model", "weights", "baseline", "defenses"]
        order += ["federation", "privacy", "victims", "server", "public", "attacks", "metrics"]
        order += ["device"]
        for name in ("weights", "server", "public"):
            if plain[name] is None:
                order.remove(name)  # a setting without a value would be refused in a file
        return {name: plain[name] for name in order}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a configuration from nested mappings of plain values, as in YAML.

        Args:
            values: settings by name. A plugin is given by its short name, its dotted path, or a
                mapping with ``class_path`` (either) and ``init_args``; a single attack or defence
                need not be a list.

        Raises:
            BadInput: if a name is unknown, or a value has the wrong type or is out of range.
        """
        settings = check_settings(values)
        for name, kind in PLUGINS.items():
            if name not in (*LISTS, *OPTIONAL):
                given = name in settings
                require(
                    given, f"Expected `{name}` to be given, got nothing: see `fedleak list {kind}`."
                )
        for name, part in SECTIONS.items():
            settings[name] = part(**settings.get(name, {}))
        return cls(**settings)

    @property
    def hash(self) -> str:
        """Hash of all settings but the output folder, 16 hexadecimal digits.

        Settings that equal their defaults are left out, so that a run can be resumed by a later
        version with more settings.
        """
        plain = {name: value for name, value in self.to_dict().items() if name != "output"}
        own = _without_defaults(plain, type(self))
        for name, part in SECTIONS.items():
            own[name] = _without_defaults(plain[name], part)
        if not own["privacy"]:
            del own["privacy"]  # it came later than the others
        if self.federation.clients == replace(self.federation, clients=None).known_size:
            own["federation"].pop("clients", None)
        for name in PLUGINS:
            if name not in plain:
                continue
            held = plain[name] if name in LISTS else [plain[name]]
            own[name] = [_own_settings(plugin) for plugin in held]
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write config.yaml: the resolved configuration and the versions of the packages."""
        text = yaml.safe_dump(self.to_dict() | {"versions": versions()}, sort_keys=False)
        path.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a config.yaml.

        Raises:
            BadInput: if it is missing or not a valid configuration of a run.
        """
        require(path.is_file(), f"Expected the configuration of a run at {path}, found none.")
        values = read_yaml(path)
        require(isinstance(values, dict), f"Expected a mapping in {path}, got {shown(values)}.")
        require(
            values.get("kind") != "audit",
            f"Expected the configuration of a run at {path}, got that of an audit.",
        )
        return cls.from_dict(values)


PLUGINS = {
    "data": "data", "model": "models", "attacks": "attacks", "defenses": "defenses",
    "server": "servers",
}  # fmt: skip
"""Settings of a run that name plugins -> kind."""
OPTIONAL = ("server",)
"""Settings that name a plugin and may be left out."""
LISTS = ("attacks", "defenses")
"""Settings that hold several plugins."""
SECTIONS: dict[str, type[Any]] = {
    "federation": Federation,
    "victims": Victims,
    "metrics": Metrics,
    "privacy": Privacy,
}
"""Nested settings of a run -> their class."""


def check_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check some or all settings of a run.

    Args:
        values: see :meth:`RunConfig.from_dict`.

    Returns:
        For each name a :class:`Plugin`, a tuple of them, the checked settings of a section, or a
        value.

    Raises:
        BadInput: if a name is unknown or a value has the wrong type.
    """
    types = {name: item.annotation for name, item in parameters_of(RunConfig).items()}
    check_keys("", {n: v for n, v in values.items() if n != "versions"}, types)
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name in LISTS:
            items = [] if value is None else value
            items = items if isinstance(items, list | tuple) else [items]
            found[name] = tuple(read_plugin(PLUGINS[name], name, item) for item in items)
        elif name in OPTIONAL and value is None:
            found[name] = None
        elif name in PLUGINS:
            found[name] = read_plugin(PLUGINS[name], name, value)
        elif name in SECTIONS:
            found[name] = check_values(name, {} if value is None else value, SECTIONS[name])
        elif name != "versions":
            found[name] = check_value(name, value, types[name])
    return found


def check_plugins(config: RunConfig) -> None:
    """Check that the classes of a configuration's plugins exist and are of the right kind.

    Raises:
        BadInput: if a class does not exist or is of another kind.
    """
    for name, kind in PLUGINS.items():
        held = getattr(config, name)
        for plugin in held if name in LISTS else (held,) * (held is not None):
            load_plugin(kind, plugin.class_path, name)


def versions() -> dict[str, str]:
    """Versions of the installed packages that affect results."""
    found = {}
    for name in VERSIONS_OF:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _printable(text: str) -> str:
    """A name without control characters, which a row of results.csv must not hold."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _signature(kind: str, plugin: Plugin) -> str:
    """The short name and the settings that differ from their defaults."""
    own = _own_settings(asdict(plugin))["init_args"]
    settings = ",".join(f"{name}={value}" for name, value in own.items())
    name = short_name(kind, plugin.class_path)
    return f"{name}({settings})" if settings else name


def _own_settings(plugin: Mapping[str, Any]) -> dict[str, Any]:
    """A plugin's entry without settings that equal their defaults, if its class can be loaded."""
    try:
        owner = load_class(plugin["class_path"])
    except BadInput:
        return dict(plugin)
    return {"class_path": plugin["class_path"]} | {
        "init_args": _without_defaults(plugin["init_args"], owner)
    }


def _without_defaults(settings: Mapping[str, Any], owner: type[Any]) -> dict[str, Any]:
    """Settings without those that equal the defaults of the class that takes them."""
    known, found = parameters_of(owner), {}
    defaults = {item.name: item.default_factory for item in _factories(owner)}
    for name, value in settings.items():
        parameter = known.get(name)
        if parameter is not None:
            default = defaults[name]() if name in defaults else parameter.default
            if value == default and isinstance(value, bool) == isinstance(default, bool):
                continue
            if parameter.nested is not None and isinstance(value, Mapping):
                value = _without_defaults(value, parameter.nested)
        found[name] = value
    return found


def _factories(owner: type[Any]) -> list[Any]:
    if not hasattr(owner, "__dataclass_fields__"):
        return []
    return [item for item in fields(owner) if item.default_factory is not MISSING]
