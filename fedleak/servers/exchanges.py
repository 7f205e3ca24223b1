"""What a malicious server sends to its victims, round by round, and what comes back."""

import copy
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fedleak.errors import BadInput, require
from fedleak.runtime.seeds import derive_seed
from fedleak.servers.base import Crafted, MaliciousServer, Reading
from fedleak.servers.files import load_crafted, save_crafted
from fedleak.updates.files import KEY, Tensors, short, update_key
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

# Clients are seeded from seed, round and client too, and so are attacks: no draws are shared.
SALT = 0x5E4D


@dataclass(frozen=True)
class Exchange:
    """What was sent to a client in a round, and its update.

    Args:
        round: number of the round, from 1.
        client: number of the client, from 0.
        crafted: what was sent, or its file.
        update: the update, or its file.
    """

    round: int
    client: int
    crafted: Crafted | Path
    update: InterceptedUpdate | Path

    @property
    def key(self) -> str:
        """The name of its files, such as ``r0001-c0003``."""
        return update_key(self.round, self.client)

    @property
    def content(self) -> tuple[Crafted, InterceptedUpdate]:
        """What was sent and what came back, from their files if they are there."""
        crafted, update = self.crafted, self.update
        return (
            load_crafted(crafted) if isinstance(crafted, Path) else crafted,
            InterceptedUpdate.load(update) if isinstance(update, Path) else update,
        )


class Exchanges:
    """What a malicious server sends to its victims and what they answer.

    Args:
        server: the malicious server.
        knowledge: gives what the server knows about an update, by the configuration that was sent;
            before a client is asked, about an update of which nothing was received.
        public: public inputs, normalised as the clients', ``(samples, ...)``. If None, there are
            none.
        seed: seed of the server's draws, at least 0.
        sent: folder for what is sent. If None, it is kept in memory.
        updates: folder of the updates, with which exchanges before an interruption are found.
        names: names of the entries of the training configuration that the clients obey. If None,
            they are not known.

    Attributes:
        has_sent: whether the server has made something of the global model by now.
    """

    def __init__(
        self,
        server: MaliciousServer,
        knowledge: Callable[[InterceptedUpdate, Crafted | None], Knowledge],
        *,
        public: Tensor | None = None,
        seed: int = 0,
        sent: Path | None = None,
        updates: Path | None = None,
        names: Collection[str] | None = None,
    ) -> None:
        require(
            server.rounds >= 1,
            f"Expected `rounds` of {server.name} to be at least 1, got {server.rounds}.",
        )
        self.server = server
        self._knowledge = knowledge
        self._public = public
        self._seed = seed
        self._sent = sent
        self._names = names
        self.has_sent = False
        self._open: dict[str, Crafted | Path] = {}
        self._done: dict[int, list[Exchange]] = {}
        if sent is not None:
            sent.mkdir(parents=True, exist_ok=True)
        if sent is not None and updates is not None:
            self._restore(sent, updates)

    def _restore(self, sent: Path, updates: Path) -> None:
        """Take up what was exchanged before an interruption."""
        for path in sorted(sent.glob("r*-c*.safetensors")):
            self.has_sent = True
            match, update = KEY.fullmatch(path.stem), updates / path.name
            if match is not None and update.is_file():
                exchange = Exchange(int(match[1]), int(match[2]), path, update)
                self._done.setdefault(exchange.client, []).append(exchange)
        for exchanges in self._done.values():
            exchanges.sort(key=lambda exchange: exchange.round)

    def begin_round(self, round_: int) -> None:
        """Forget what was exchanged in this round and later: the round is run again.

        Args:
            round_: number of the round, from 1.
        """
        self._open.clear()
        for client, exchanges in self._done.items():
            self._done[client] = [each for each in exchanges if each.round < round_]
        if self._sent is not None:
            for path in self._sent.glob("r*-c*.safetensors"):
                match = KEY.fullmatch(path.stem)
                if match is not None and int(match[1]) >= round_:
                    path.unlink()

    def craft(self, expected: InterceptedUpdate) -> Crafted:
        """What is sent to a client in this round; it is written to the folder.

        Args:
            expected: the update that is expected, with the global weights as those sent and nothing
                received. Its ``num_examples`` is 0 if the client has not told any yet.

        Raises:
            BadInput: if the server cannot attack the model, or what it made cannot be sent.
        """
        round_, client = expected.round, expected.client
        crafted = craft(
            self.server,
            self._knowledge(expected, None),
            dict(expected.sent),
            public=self._public,
            generator=self._generator(round_, client),
            earlier=tuple(each.content for each in self._since_reading(client)),
        )
        if self._names is not None:
            check_obeyed(self.server.name, crafted.config, self._names)
        self.has_sent = True
        key = update_key(round_, client)
        if self._sent is None:
            self._open[key] = crafted
        else:
            path = self._sent / f"{key}.safetensors"
            save_crafted(crafted, path, self.server.name)
            self._open[key] = path
        return crafted

    def answered(self, update: InterceptedUpdate, kept: Path | None = None) -> None:
        """Take up the update of a client that was sent something in this round.

        Args:
            update: the update; its ``sent`` is what was sent to the client.
            kept: its file. If None, the update is kept in memory.
        """
        crafted = self._open.pop(update.key)
        exchange = Exchange(update.round, update.client, crafted, update if kept is None else kept)
        self._done.setdefault(update.client, []).append(exchange)

    def groups(self) -> list[tuple[Exchange, ...]]:
        """The exchanges that are read together, by client: each of as many rounds as it takes."""
        size, found = self.server.rounds, []
        for client in sorted(self._done):
            exchanges = self._done[client]
            whole = len(exchanges) // size * size
            found += [tuple(exchanges[at : at + size]) for at in range(0, whole, size)]
        return found

    def unread(self) -> dict[int, int]:
        """Client -> number of its exchanges that are too few to be read."""
        left = {client: len(self._since_reading(client)) for client in sorted(self._done)}
        return {client: number for client, number in left.items() if number}

    def read(self, group: tuple[Exchange, ...]) -> Reading:
        """Samples of a client, read from what was exchanged with it.

        Args:
            group: one of :meth:`groups`.

        Raises:
            BadInput: if an update does not fit what was sent, or the reading is no valid one.
        """
        rounds = tuple(exchange.content for exchange in group)
        crafted, update = rounds[-1]
        return read(
            self.server,
            self._knowledge(update, crafted),
            rounds,
            public=self._public,
            generator=self._generator(update.round, update.client),
        )

    def features_of(self, group: tuple[Exchange, ...], inputs: Tensor) -> Tensor | None:
        """The features that an exact reading gives of inputs; None if it gives the inputs.

        Args:
            group: one of :meth:`groups`.
            inputs: ``(samples, ...)``, normalised.
        """
        crafted, update = group[-1].content
        return true_features(self.server, self._knowledge(update, crafted), crafted, inputs)

    def _since_reading(self, client: int) -> list[Exchange]:
        exchanges = self._done.get(client, [])
        return exchanges[len(exchanges) // self.server.rounds * self.server.rounds :]

    def _generator(self, round_: int, client: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self._seed, round_, client, SALT))


def check_obeyed(server: str, entries: Iterable[str], names: Collection[str]) -> None:
    """Refuse entries of the training configuration that clients ignore.

    Args:
        server: name of the server.
        entries: names of the entries that it sets.
        names: those that the clients obey.

    Raises:
        BadInput: if they ignore one.
    """
    ignored = sorted(set(entries) - set(names))
    require(
        not ignored,
        f"Expected clients that obey the entries which {server} sets in the training "
        f"configuration, but they ignore `{'`, `'.join(ignored)}`: name them in "
        "`federation.obeys`.",
    )


def craft(
    server: MaliciousServer,
    knowledge: Knowledge,
    weights: Tensors,
    *,
    public: Tensor | None,
    generator: torch.Generator,
    earlier: tuple[tuple[Crafted, InterceptedUpdate], ...] = (),
) -> Crafted:
    """What a server makes of the global model, checked; it is given a copy of the model.

    Args:
        server: the malicious server.
        knowledge: what it knows; its labels are left out.
        weights: the global weights that are sent, by the names of the model's state; all of it or
            a part, of which what was made is returned.
        public: see :meth:`MaliciousServer.craft`.
        generator: see there.
        earlier: see there.

    Raises:
        BadInput: if the server cannot attack the model, or what it made cannot be sent.
    """
    facts = _of_server(server.name, knowledge, weights)
    state = {name: value.clone() for name, value in facts.model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        made = server.craft(facts, public=public, generator=generator, earlier=earlier)
    check_crafted(server.name, made, state)
    for name in state.keys() - weights.keys():
        require(
            torch.equal(made.weights[name], state[name]),
            f"Expected {server.name} to change only what is sent, got another `{name}`, which is "
            "not.",
        )
    return replace(made, weights={name: made.weights[name] for name in weights})


def read(
    server: MaliciousServer,
    knowledge: Knowledge,
    rounds: tuple[tuple[Crafted, InterceptedUpdate], ...],
    *,
    public: Tensor | None,
    generator: torch.Generator,
) -> Reading:
    """What a server reads of a client, checked; it is given a copy of the model.

    Args:
        server: the malicious server.
        knowledge: what it knows of the last update; its labels are left out.
        rounds: see :meth:`MaliciousServer.read`.
        public: see there.
        generator: see there.

    Raises:
        BadInput: if an update does not fit what was sent, or the reading is no valid one.
    """
    facts = _of_server(server.name, knowledge, rounds[-1][0].weights)
    named = tuple((crafted, update.for_model(facts.model)) for crafted, update in rounds)
    for _, update in named:
        update.check(facts.model)
    with torch.random.fork_rng(devices=[]):
        reading = server.read(facts, named, public=public, generator=generator)
    check_reading(server.name, reading, facts.input_shape)
    return reading


def true_features(
    server: MaliciousServer, knowledge: Knowledge, crafted: Crafted, inputs: Tensor
) -> Tensor | None:
    """The features that an exact reading gives of inputs; None if it gives the inputs.

    Args:
        server: the malicious server.
        knowledge: what it knows of the last update.
        crafted: what it sent then.
        inputs: ``(samples, ...)``, normalised.
    """
    facts = _of_server(server.name, knowledge, crafted.weights)
    with torch.no_grad():
        return server.features_of(facts.model.eval(), inputs)


def _of_server(name: str, knowledge: Knowledge, weights: Tensors) -> Knowledge:
    """What the server knows, without labels, with a copy of the model with these weights."""
    model = copy.deepcopy(knowledge.model)
    state = model.state_dict()
    strange = sorted(weights.keys() - state.keys())
    require(
        not strange,
        f"Expected weights by the names of {type(model).__name__} where {name} makes others of "
        f"them, got {short((strange or [''])[0])}.",
    )
    model.load_state_dict(state | weights)
    return replace(knowledge, model=model, labels=None)


def check_crafted(name: str, crafted: Crafted, weights: Tensors) -> None:
    """Check that what a server made can be sent in place of the global weights.

    Args:
        name: the server's name, for messages.
        crafted: what it made.
        weights: the global weights.

    Raises:
        BadInput: if names, shapes or dtypes differ, a value is not finite, or an entry of the
            configuration is no number, text or truth value.
    """
    missing = sorted(weights.keys() ^ crafted.weights.keys())
    require(
        not missing,
        f"Expected the complete state of the model from {name}, got other names, such as "
        f"{short((missing or [''])[0])}.",
    )
    for tensor, value in weights.items():
        own = crafted.weights[tensor]
        kinds = [f"{each.dtype} {tuple(each.shape)}" for each in (value, own)]
        require(
            kinds[0] == kinds[1], f"Expected `{tensor}` as {kinds[0]} from {name}, got {kinds[1]}."
        )
        require(
            not own.is_floating_point() or bool(own.isfinite().all()),
            f"Expected finite numbers in `{tensor}` from {name}, got NaN or infinity.",
        )
    for entry, setting in crafted.config.items():
        if not isinstance(setting, bool | int | float | str):
            raise BadInput(
                f"Expected a number or text as `{entry}` in the training configuration from "
                f"{name}, got {type(setting).__name__}."
            )


def check_reading(name: str, reading: Reading, input_shape: tuple[int, ...]) -> None:
    """Check that the parts of a reading fit each other and the model.

    Args:
        name: the server's name, for messages.
        reading: what it read.
        input_shape: shape of a sample.

    Raises:
        BadInput: if numbers or shapes do not fit, or a value is not finite.
    """
    found = len(reading.inputs)
    shapes = {
        "inputs": ((found, *input_shape), tuple(reading.inputs.shape)),
        "labels": ((found,), tuple(reading.labels.shape)),
        "certified": ((found,), tuple(reading.certified.shape)),
        "features": ((found,), tuple(reading.features.shape[:1])),
    }
    for part, (expected, got) in shapes.items():
        require(expected == got, f"Expected `{part}` of shape {expected} from {name}, got {got}.")
    require(
        reading.features.dim() == 2,
        f"Expected `features` with two dimensions from {name}, got {reading.features.dim()}.",
    )
    for part in ("inputs", "features"):
        require(
            bool(getattr(reading, part).isfinite().all()),
            f"Expected finite numbers in `{part}` from {name}, got NaN or infinity.",
        )
