"""The malicious server: a strategy that wraps any Flower strategy and attacks clients' updates.

Without a ``server`` the threat model is an honest-but-curious server: the training itself is
unchanged. With one, it changes what it sends to its victims, and trains with the other clients.
"""

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Result,
    Strategy,
)
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fedleak.attacks.attack_updates import attack_updates
from fedleak.attacks.base import Attack, Progress, Reconstruction
from fedleak.config import Victims
from fedleak.errors import BadInput, require, unknown_name
from fedleak.federation import records
from fedleak.federation.reply_checks import (
    MOST_EXAMPLES,
    Keys,
    check_arrays,
    check_metrics,
    examples_of,
    main_record,
    odd_ones,
    trains_trees,
)
from fedleak.runtime.seeds import derive_seed
from fedleak.servers.base import Crafted, MaliciousServer, Reading
from fedleak.servers.exchanges import Exchanges
from fedleak.updates.compression import CompactTensors
from fedleak.updates.files import Tensors, check_name, remove_round
from fedleak.updates.knowledge import Knowledge, Protocol
from fedleak.updates.mean_update import mean_of_updates
from fedleak.updates.naming import is_listed
from fedleak.updates.update import InterceptedUpdate

logger = logging.getLogger(__name__)

OnAttacked = Callable[[Attack, InterceptedUpdate, Reconstruction], None]
OnProgress = Callable[[Attack, Progress], None]
AttackFilter = Callable[[Attack, InterceptedUpdate], bool]
Start = Callable[[int, int], Mapping[str, torch.Tensor]]

# Flower's own error codes are lower.
REFUSED = 1000
UPGRADE = "https://flower.ai/docs/framework/how-to-upgrade-to-message-api.html"
# The strategy's methods that Flower calls in every round, and that are intercepted.
ROUND_METHODS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")


class MaliciousStrategy(Strategy):
    """Wraps a Flower strategy, leaves its training unchanged, and attacks the intercepted updates.

    With a ``server``, the clients of ``victims`` are sent what it makes of the global model, and
    their replies are left out of the aggregation; the others are sent the global model. The global
    model is then that of a federation without the victims' replies in the attacked rounds.

    Replies with weights are passed on to the inner strategy as they are. A reply with a gradient
    (protocol fedsgd) is passed on as the weights after one step with it, so that the inner strategy
    works unchanged. An inner strategy that uses only the mean of the replies receives the mean as a
    single reply; buffers are then averaged without the strategy's server optimiser.

    A reply that cannot be aggregated counts as its client's failure, and the inner strategy sees an
    error instead: arrays that are missing, of other shapes than were sent, not finite or not
    readable; no metrics, or a number of examples that is not positive or above ``max_examples``;
    and, if the inner strategy sends or aggregates as Flower's own do, other records, arrays or
    metrics than most replies have.

    Args:
        inner: the strategy that runs the federation.
        attacks: attacks to run on the intercepted updates.
        knowledge: what the server knows about all updates, or a function that gives it for an
            update; required if there are ``attacks``.
        learning_rate: learning rate of the step that turns a gradient into weights (fedsgd). If
            None, the learning rate in ``knowledge``.
        victims: whose updates to keep, and when to attack them.
        folder: where to write each intercepted update. If None, updates are kept in memory.
        model: the model's name in the updates' headers; see ``updates.files.check_name``.
        clients: node id -> client number, looked up when needed; nodes not in it are numbered in
            order of appearance.
        seed: seed of the attacks, at least 0.
        seeded_sampling: whether to seed Python's random state, from which strategies sample
            clients, in every round; a resumed federation then samples the same clients.
        first_round: number of the first round; more than 1 if a federation is resumed.
        device: torch device on which the attacks run.
        protocol: what replies with arrays alone hold: ``fedavg`` (weights), ``delta`` (a change of
            weights) or ``fedsgd`` (a gradient, which the inner strategy itself applies). If None,
            ``delta`` if ``knowledge`` says so, otherwise ``fedavg``.
        starts: called with round and client number, gives the weights by name from which that
            client starts where they are not those that were sent, such as layers of its own. If
            None, layers that a client returns without having been sent them start from what it
            returned last. Updates with a start of their own are kept in memory.
        max_examples: largest number of examples that a client can have used.
        alike: whether a reply is refused that has other records, arrays or metrics than most. If
            None, it is if the inner strategy sends or aggregates as Flower's own do.
        server: a malicious server, or what it has exchanged with its victims so far. If None, the
            server only listens.
        public: public inputs of the malicious server, normalised as the clients'. If None, there
            are none.
        wanted: whether to run an attack on an update. If None, all are run.
        on_intercept: called with every update that is kept.
        on_attacked: called with every reconstruction; ``reconstructions`` also lists them, with the
            attack's name and the update's key.
        on_progress: called repeatedly by an attack; it may raise ``Stopped`` to end the run.
        on_failure: called with round, client number and reason when a client does not answer or an
            attack on its update fails. If None, failures are logged.
        on_asked: called with the round and the numbers of the clients that are about to be asked to
            train; it may raise ``Stopped`` to end the run before.

    Raises:
        BadInput: if there are ``attacks`` or a ``server`` without ``knowledge``, ``model`` is no
            valid name, ``inner`` is not a strategy of Flower's Message API, or ``protocol`` is none
            of the three.

    Attributes:
        readings: what the malicious server has read, each with the key of the last update.
    """

    def __init__(
        self,
        inner: Strategy,
        *,
        attacks: Sequence[Attack] = (),
        knowledge: Knowledge | Callable[[InterceptedUpdate], Knowledge] | None = None,
        learning_rate: float | None = None,
        victims: Victims = Victims(),  # noqa: B008 - it is frozen
        folder: Path | None = None,
        model: str = "model",
        clients: Mapping[int, int] | None = None,
        seed: int = 0,
        seeded_sampling: bool = False,
        first_round: int = 1,
        device: str = "cpu",
        protocol: Protocol | None = None,
        starts: Start | None = None,
        max_examples: int = MOST_EXAMPLES,
        alike: bool | None = None,
        server: MaliciousServer | Exchanges | None = None,
        public: torch.Tensor | None = None,
        wanted: AttackFilter | None = None,
        on_intercept: Callable[[InterceptedUpdate], None] | None = None,
        on_attacked: OnAttacked | None = None,
        on_progress: OnProgress | None = None,
        on_failure: Callable[[int, int, str], None] | None = None,
        on_asked: Callable[[int, list[int]], None] | None = None,
    ) -> None:
        if attacks and knowledge is None:
            raise BadInput("Expected `knowledge` where `attacks` are given, got none.")
        if isinstance(server, MaliciousServer) and knowledge is None:
            raise BadInput("Expected `knowledge` where a malicious `server` is given, got none.")
        check_name("the model", model)
        _check_inner(inner)
        if protocol not in (None, *get_args(Protocol)):
            raise unknown_name("protocol", str(protocol), get_args(Protocol))
        self.inner = inner
        self.keys = Keys.of(inner)
        if alike is not None:
            self.keys = replace(self.keys, alike=alike)
        self._inner_steps = {name: getattr(inner, name) for name in ROUND_METHODS}
        self.attacks = attacks
        self.knowledge = knowledge
        if learning_rate is None and isinstance(knowledge, Knowledge):
            learning_rate = knowledge.learning_rate
        self.learning_rate = learning_rate
        self.victims = victims
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.model = model
        self.seed = seed
        self.seeded_sampling = seeded_sampling
        self.first_round = first_round
        self.current_round = first_round
        self.device = device
        if protocol is None:
            says_delta = isinstance(knowledge, Knowledge) and knowledge.protocol == "delta"
            protocol = "delta" if says_delta else "fedavg"
        self.protocol: Protocol = protocol
        self.starts = starts
        self.max_examples = max_examples
        self.failures = 0
        self.lost: dict[int, int] = {}
        self.diverged: int | None = None
        self.intercepted: list[InterceptedUpdate | Path] = []
        self.reconstructions: list[tuple[str, str, Reconstruction]] = []
        self.clients = {} if clients is None else clients
        self._numbers: dict[int, int] = {}
        self.exchanges: Exchanges | None = server if isinstance(server, Exchanges) else None
        if isinstance(server, MaliciousServer):
            sent = None if folder is None else folder / "sent"
            known = self._knowledge_sent
            self.exchanges = Exchanges(
                server, known, public=public, seed=seed, sent=sent, updates=folder
            )
        self._own_exchanges = isinstance(server, MaliciousServer)
        self.readings: list[tuple[str, Reading]] = []
        self._wanted = wanted
        self._on_intercept = on_intercept
        self._on_attacked = on_attacked
        self._on_progress = on_progress
        self._on_failure = on_failure
        self._on_asked = on_asked
        self._sent: Tensors = {}
        self._sent_to: dict[int, Tensors] = {}
        self._crafted: dict[int, Crafted] = {}
        self._examples: dict[int, int] = {}
        self._own_layers: dict[int, Tensors] = {}
        self._layout: dict[str, frozenset[str]] = {}
        self._sampled_nodes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """Run the inner strategy's own loop, then the attacks if ``victims.when`` is "after".

        Args:
            args: positional arguments of the inner strategy's ``start``.
            kwargs: keyword arguments of the inner strategy's ``start``.
        """
        with self._intercepting_rounds():
            result = self.inner.start(*args, **kwargs)
        if self.attacks and self.victims.when == "after":
            for kept in self.intercepted:
                self._attack(kept if isinstance(kept, InterceptedUpdate) else _load(kept))
        if self._reads_itself:
            self._read_all()
        return result

    def _read_all(self) -> None:
        """Read all victims; one that cannot be read costs no other."""
        assert self.exchanges is not None
        for group in self.exchanges.groups():
            last = group[-1]
            try:
                self.readings.append((last.key, self.exchanges.read(group)))
            except BadInput as error:
                self._fail(last.round, last.client, f"{self.exchanges.server.name}: {error}")
        for client, number in self.exchanges.unread().items():
            name, rounds = self.exchanges.server.name, self.exchanges.server.rounds
            reason = f"{name} reads after {rounds} rounds and it answered in {number}"
            self._fail(self.current_round, client, reason)

    @contextmanager
    def _intercepting_rounds(self) -> Iterator[None]:
        """Within the block, the inner strategy's own loop calls this object's round methods.

        The inner ``start`` may call ``super().start`` or set attributes, so it has to run on the
        inner strategy itself.
        """
        for name in ROUND_METHODS:
            setattr(self.inner, name, getattr(self, name))
        try:
            yield
        finally:
            for name in ROUND_METHODS:
                delattr(self.inner, name)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages, and record the weights and nodes in them.

        Those to victims carry what the malicious server makes of them, if there is one.

        Raises:
            BadInput: if the malicious server cannot attack the model at all.
        """
        round_ = self._round(server_round)
        self.current_round = round_
        if self.seeded_sampling:
            random.seed(derive_seed(self.seed, round_))
        messages = list(self._inner_steps["configure_train"](round_, arrays, config, grid))
        if self._on_asked is not None:
            self._on_asked(round_, [self._number(m.metadata.dst_node_id) for m in messages])
        self._sent = records.to_tensors(arrays)
        self._sent_to = {}
        for message in messages:
            own = message.content.array_records.get(self.keys.arrays)
            if own is not None and own is not arrays:
                self._sent_to[message.metadata.dst_node_id] = records.to_tensors(own)
        if self.folder is not None:
            remove_round(self.folder, round_)
        self._sampled_nodes = [message.metadata.dst_node_id for message in messages]
        self._crafted = {}
        if self.exchanges is not None:
            self.exchanges.begin_round(round_)
            asked = [
                message
                for message in messages
                if self.victims.includes(round_, self._number(message.metadata.dst_node_id))
            ]
            for group in [asked] if self.victims.aggregated else [[each] for each in asked]:
                if group:
                    self._craft(self.exchanges, round_, group)
        return messages

    def _craft(self, exchanges: Exchanges, round_: int, messages: Sequence[Message]) -> None:
        """Replace what messages send to victims by what the malicious server makes of it.

        Args:
            exchanges: of the malicious server.
            round_: number of the round.
            messages: to one victim, or to those whose updates come as one.
        """
        nodes = [message.metadata.dst_node_id for message in messages]
        client = self.victims.first if self.victims.aggregated else self._number(nodes[0])
        expected = InterceptedUpdate(
            round=round_,
            client=client,
            protocol=self.protocol,
            num_examples=self._examples.get(client, 0),
            model=self.model,
            sent=self._sent_to.get(nodes[0], self._sent),
            received={},
            clients=len(messages),
        )
        try:
            crafted = exchanges.craft(expected)
        except BadInput as error:
            if not exchanges.has_sent:
                raise  # it cannot attack such a model at all
            reason = f"{exchanges.server.name} leaves the global model as it is: {error}"
            self._fail(round_, client, reason)
            return
        for message in messages:
            self._replace_content(message, crafted)

    def _replace_content(self, message: Message, crafted: Crafted) -> None:
        content = RecordDict(dict(message.content))
        content[self.keys.arrays] = records.to_record(crafted.weights)
        name = str(getattr(self.inner, "configrecord_key", records.CONFIG))
        entries = dict(content.config_records.get(name, ConfigRecord()))
        content[name] = ConfigRecord({**entries, **crafted.config})
        message.content = content
        self._crafted[message.metadata.dst_node_id] = crafted

    def _sent_by(self, node: int) -> Tensors:
        """What a node was sent in this round."""
        crafted = self._crafted.get(node)
        return self._sent_to.get(node, self._sent) if crafted is None else crafted.weights

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Intercept the replies, then aggregate those that can be with the inner strategy.

        Raises:
            BadInput: if clients send gradients and no learning rate is known.
        """
        round_ = self._round(server_round)
        received = list(replies)
        self._count_failures(round_, received)
        received, decoded = self._usable(round_, received)
        together: list[InterceptedUpdate] = []
        for reply in received:
            client = self._number(reply.metadata.src_node_id)
            if reply.has_content() and self.victims.includes(round_, client):
                try:
                    update = self._update_of(round_, client, reply, decoded[id(reply)])
                    if self.victims.aggregated:
                        together.append(update)
                    else:
                        self._intercept(update, reply.metadata.src_node_id)
                except (OSError, BadInput) as error:
                    # A full disk, say, must not stop the training.
                    self._fail(round_, client, f"its update could not be kept: {error}")
            if reply.has_content():
                self._keep_own_layers(client, reply)
        if together:
            self._intercept_mean(together)
        if self._crafted:
            # Errors stay, as strategies count them.
            received = [r for r in received if r.metadata.src_node_id not in self._crafted]
            decoded = {id(r): decoded[id(r)] for r in received if id(r) in decoded}
            if not received:
                return None, None
        gradients = {key: v for key, v in decoded.items() if isinstance(v, CompactTensors)}
        if not gradients:
            arrays, metrics = self._aggregate(round_, received)
        else:
            ready, buffers = self._with_weights(received, gradients)
            arrays, metrics = self._aggregate(round_, ready)
            if arrays is not None:
                # Counts and statistics are averaged, not changed by the server's optimiser.
                merged = ArrayRecord({**arrays, **buffers})
                arrays = records.with_dtypes_of(merged, self._sent)
        if arrays is not None and self.diverged is None and not records.is_finite(arrays):
            self.diverged = round_
            logger.warning("round %d: the global model holds NaN or infinity", round_)
        return arrays, metrics

    def _usable(
        self, round_: int, received: Sequence[Message]
    ) -> tuple[list[Message], dict[int, Tensors | CompactTensors]]:
        """Replace replies that cannot be aggregated by errors.

        Returns:
            The replies, and the arrays of each gradient and of each victim's reply, by the reply's
            ``id``: decoding takes long.
        """
        decoded: dict[int, Tensors | CompactTensors] = {}
        found: list[Message] = []
        for reply in received:
            fault, tensors = None, cast(Tensors | CompactTensors, {})
            if reply.has_content() and not trains_trees(self.inner):
                node = reply.metadata.src_node_id
                sent = self._sent_by(node)
                fault = check_metrics(reply.content, self.keys, self.max_examples)
                if fault is None:
                    fault, tensors = check_arrays(reply.content, self.keys, sent)
                victim = self.victims.includes(round_, self._number(node))
                if fault is None and (victim or isinstance(tensors, CompactTensors)):
                    decoded[id(reply)] = tensors
            found.append(reply if fault is None else self._refuse(round_, reply, fault))
        if self.keys.alike and not trains_trees(self.inner):
            found = self._alike("train", round_, found)
        return found, {id(r): decoded[id(r)] for r in found if id(r) in decoded}

    def _alike(self, kind: str, round_: int, replies: Sequence[Message]) -> list[Message]:
        """Replace replies that consist of other parts than most by errors."""
        answers = [reply for reply in replies if reply.has_content()]
        contents = [reply.content for reply in answers]
        agreed = self._layout.get(kind, frozenset())
        odd, self._layout[kind] = odd_ones(contents, agreed, self._sent)
        faults = {id(answers[position]): fault for position, fault in odd.items()}
        return [
            self._refuse(round_, reply, faults[id(reply)]) if id(reply) in faults else reply
            for reply in replies
        ]

    def _refuse(self, round_: int, reply: Message, fault: str) -> Message:
        """An error in place of a reply, counted and reported as its client's failure."""
        reason = f"its reply was refused: {fault}"
        self._lose(round_, self._number(reply.metadata.src_node_id), reason)
        return Message(metadata=reply.metadata, error=Error(REFUSED, reason))  # type: ignore[call-overload,no-any-return]

    def _aggregate(
        self, round_: int, replies: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The inner strategy's result; replies that it finds inconsistent are left out."""
        step = self._inner_steps["aggregate_train"]
        result: tuple[ArrayRecord | None, MetricRecord | None]
        try:
            result = step(round_, replies)
        except InconsistentMessageReplies:
            alike = self._alike("train", round_, replies)
            if all(old is new for old, new in zip(replies, alike, strict=True)):
                raise
            result = step(round_, alike)
        return result

    def _with_weights(
        self, received: list[Message], decoded: Mapping[int, CompactTensors]
    ) -> tuple[list[Message], dict[str, Array]]:
        """Replace gradients in the replies by weights.

        Returns:
            The replies for the inner strategy, and the buffers' means by name; empty if the replies
            were not merged.
        """
        if self.learning_rate is None:
            raise BadInput("Expected `learning_rate` where clients send gradients, got none.")
        senders = [reply for reply in received if id(reply) in decoded]
        gradients = [decoded[id(reply)] for reply in senders]
        alike = not self._sent_to and records.can_be_merged(senders, gradients)
        if alike and uses_only_the_mean(self.inner):
            others = [reply for reply in received if id(reply) not in decoded]
            names = list(senders[0].content.array_records.get(records.BUFFERS, ArrayRecord()))
            merged = records.merge(senders, gradients, self._sent, self.learning_rate)
            arrays = merged.content.array_records[records.ARRAYS]
            return [merged, *others], {name: arrays[name] for name in names}
        for reply, gradient in zip(senders, gradients, strict=True):
            sent = self._sent_to.get(reply.metadata.src_node_id, self._sent)
            records.replace_gradient_by_weights(
                reply, gradient, sent, self.learning_rate, self.keys.arrays
            )
        return received, {}

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages."""
        step = self._inner_steps["configure_evaluate"]
        messages: Iterable[Message] = step(self._round(server_round), arrays, config, grid)
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate the replies that can be with the inner strategy."""
        step, round_ = self._inner_steps["aggregate_evaluate"], self._round(server_round)
        found = []
        for reply in replies:
            fault = None
            if reply.has_content():
                fault = check_metrics(reply.content, self.keys, self.max_examples)
            found.append(reply if fault is None else self._refuse(round_, reply, fault))
        if self.keys.alike:
            found = self._alike("evaluate", round_, found)
        metrics: MetricRecord | None = step(round_, found)
        return metrics

    def summary(self) -> None:
        """Log the inner strategy's configuration."""
        self.inner.summary()

    def _round(self, server_round: int) -> int:
        return server_round + self.first_round - 1

    def _number(self, node: int) -> int:
        known = self.clients.get(node)
        return self._numbers.setdefault(node, len(self._numbers)) if known is None else known

    def _count_failures(self, round_: int, replies: Sequence[Message]) -> None:
        reasons = {reply.metadata.src_node_id: "" for reply in replies}
        reasons |= {r.metadata.src_node_id: r.error.reason or "" for r in replies if r.has_error()}
        answered = {r.metadata.src_node_id for r in replies if not r.has_error()}
        for node in self._sampled_nodes:
            if node not in answered:
                reason = reasons.get(node, "it did not answer in time")
                self._lose(round_, self._number(node), reason)

    def _lose(self, round_: int, client: int, reason: str) -> None:
        self.failures += 1
        self.lost[round_] = self.lost.get(round_, 0) + 1
        self._own_layers.pop(client, None)  # it may have trained them further
        self._fail(round_, client, reason)

    def _intercept_mean(self, updates: Sequence[InterceptedUpdate]) -> None:
        """Take up the mean of the victims' updates, which alone the server sees."""
        client, crafted = self.victims.first, next(iter(self._crafted), None)
        try:
            mean = mean_of_updates(updates, client)
            self._examples[client] = mean.num_examples
            self._intercept(mean, crafted)
        except (OSError, BadInput) as error:
            self._fail(updates[0].round, client, f"the updates' mean could not be kept: {error}")

    def _update_of(
        self, round_: int, client: int, reply: Message, tensors: Tensors | CompactTensors
    ) -> InterceptedUpdate:
        """What a victim sent, as an update."""
        received = records.received_arrays(reply.content, tensors)
        sent = self._start(round_, client, reply.metadata.src_node_id)
        if not isinstance(received, CompactTensors) and not is_listed(sent):
            # Of layers whose start is not known, what came tells nothing.
            received = {name: value for name, value in received.items() if name in sent}
        self._examples[client] = int(examples_of(reply.content, self.keys) or 0)
        return InterceptedUpdate(
            round=round_,
            client=client,
            protocol="fedsgd" if isinstance(received, CompactTensors) else self.protocol,
            num_examples=int(examples_of(reply.content, self.keys) or 0),
            model=self.model,
            sent=sent,
            received=received,
        )

    def _intercept(self, update: InterceptedUpdate, node: int | None) -> None:
        """Keep an update that came from a node, and attack it if that is to be done at once."""
        # The sent weights of a round are one file; those of a victim are a file of their own.
        crafted = node in self._crafted
        on_disk = self.folder is not None and (crafted or update.sent is self._sent)
        kept = None
        if on_disk:
            kept = update.save(cast(Path, self.folder), compare=False, own=crafted)
        self.intercepted.append(update if kept is None else kept)
        if self.exchanges is not None and crafted:
            self.exchanges.answered(update, kept)
        if self._on_intercept is not None:
            self._on_intercept(update)
        if self.victims.when == "during":
            self._attack(update)

    def _start(self, round_: int, client: int, node: int) -> Tensors:
        """The weights from which a client started: those sent, and layers of its own."""
        sent = self._sent_by(node)
        own = {} if self.starts is None else dict(self.starts(round_, client))
        kept = self._own_layers.get(client, {})
        return kept | sent | own if kept or own else sent

    def _keep_own_layers(self, client: int, reply: Message) -> None:
        """Note what a client returns without having been sent it: it starts from that next time."""
        main = main_record(reply.content, self.keys)
        sent = self._sent_by(reply.metadata.src_node_id)
        if main is None or self.protocol != "fedavg" or len(main) == len(sent) or is_listed(sent):
            return
        own = {name: array for name, array in main.items() if name not in sent}
        if own and records.GRADIENT not in reply.content:
            self._own_layers[client] = records.to_tensors(ArrayRecord(own))

    def _attack(self, update: InterceptedUpdate) -> None:
        """Attack one update; an error in the update or in an attack does not stop the training."""
        for attack in self.attacks:
            if self._wanted is not None and not self._wanted(attack, update):
                continue
            try:
                knowledge = self._knowledge_of(update)
            except Exception as error:
                self._fail(update.round, update.client, f"{attack.name}: {error}")
                continue
            if attack.refuses(knowledge) is not None:
                continue
            notes = _notes(update, knowledge)
            for refused in attack_updates(
                attack,
                [update],
                lambda _, known=knowledge: known,  # type: ignore[misc]
                finished=partial(self._record, attack, notes),
                seed=self.seed,
                device=self.device,
                report=partial(self._progress, attack),
                ends=(Stopped,),
            ):
                self._fail(update.round, update.client, refused.reason)

    def _progress(self, attack: Attack, progress: Progress) -> None:
        if self._on_progress is not None:
            self._on_progress(attack, progress)

    def _record(
        self,
        attack: Attack,
        notes: tuple[str, ...],
        update: InterceptedUpdate,
        reconstruction: Reconstruction,
    ) -> None:
        reconstruction = replace(reconstruction, findings=(*notes, *reconstruction.findings))
        self.reconstructions.append((attack.name, update.key, reconstruction))
        if self._on_attacked is not None:
            self._on_attacked(attack, update, reconstruction)

    def _fail(self, round_: int, client: int, reason: str) -> None:
        if self._on_failure is None:
            logger.warning("round %d, client %d: %s", round_, client, reason)
        else:
            self._on_failure(round_, client, reason)

    @property
    def _reads_itself(self) -> bool:
        """Whether the malicious server reads updates, and was not given with its exchanges."""
        return self.exchanges is not None and self._own_exchanges and self.exchanges.server.reads

    def _knowledge_sent(self, update: InterceptedUpdate, crafted: Crafted | None) -> Knowledge:
        """What the server knows about an update; what it sent in the configuration is its own."""
        return self._knowledge_of(update)

    def _knowledge_of(self, update: InterceptedUpdate) -> Knowledge:
        if self.knowledge is None:
            raise BadInput("Expected `knowledge` where `attacks` are given, got none.")
        # What was told of the samples holds, whatever the client reports.
        return self.knowledge if isinstance(self.knowledge, Knowledge) else self.knowledge(update)


def _notes(update: InterceptedUpdate, knowledge: Knowledge) -> tuple[str, ...]:
    """What is presumed of the arrays that a client was not sent or did not return."""
    state = knowledge.model.state_dict()
    notes = []
    if len(update.sent) < len(state):
        notes.append(
            f"{len(state) - len(update.sent)} of the model's {len(state)} arrays were not sent and "
            "are those of the model that was told"
        )
    if update.protocol != "fedsgd":
        parameters = dict(knowledge.model.named_parameters(remove_duplicate=False))
        kept = [name for name in update.sent if name in state and name not in parameters]
        kept = [name for name in kept if name not in update.received]
        if kept:
            notes.append(
                f"{len(kept)} buffers such as {kept[0]} did not come back and are taken "
                "to be as they were sent"
            )
    return tuple(notes)


def _check_inner(inner: Any) -> None:
    name = type(inner).__name__
    ancestors = {ancestor.__module__ for ancestor in type(inner).__mro__}
    require(
        not any(module.startswith("flwr.server.strategy") for module in ancestors),
        f"Expected a strategy of flwr.serverapp.strategy, got {name} of flwr.server.strategy, from "
        "before Flower's Message API: move the app to flwr.serverapp and flwr.clientapp as "
        f"{UPGRADE} says.",
    )
    require(
        isinstance(inner, Strategy),
        f"Expected a strategy of flwr.serverapp.strategy, got {name}.",
    )


def uses_only_the_mean(strategy: Strategy) -> bool:
    """Whether a strategy uses only the weighted mean of the replies."""
    usual = getattr(strategy, "train_metrics_aggr_fn", None) is aggregate_metricrecords
    usual = usual and getattr(strategy, "weighted_by_key", None) == records.EXAMPLES
    return usual and type(strategy) in (FedAvg, FedAvgM, FedAdagrad, FedAdam, FedProx, FedYogi)


def _load(path: Path) -> InterceptedUpdate:
    return InterceptedUpdate.load(path)


class Stopped(Exception):
    """The run was told to stop while the server waited for clients."""
