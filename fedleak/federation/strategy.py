"""The malicious server: a strategy that wraps any Flower strategy and attacks clients' updates.

The threat model is an honest-but-curious server: the training itself is unchanged.
"""

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
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
from fedleak.errors import BadInput
from fedleak.federation import records
from fedleak.runtime.seeds import derive_seed
from fedleak.updates.compression import CompactTensors
from fedleak.updates.files import Tensors, check_name, remove_round
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

logger = logging.getLogger(__name__)

OnAttacked = Callable[[Attack, InterceptedUpdate, Reconstruction], None]
OnProgress = Callable[[Attack, Progress], None]
AttackFilter = Callable[[Attack, InterceptedUpdate], bool]

# The strategy's methods that Flower calls in every round, and that are intercepted.
ROUND_METHODS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")


class MaliciousStrategy(Strategy):
    """Wraps a Flower strategy, leaves its training unchanged, and attacks the intercepted updates.

    Replies with weights are passed on to the inner strategy as they are. A reply with a gradient
    (protocol fedsgd) is passed on as the weights after one step with it, so that the inner strategy
    works unchanged. An inner strategy that uses only the mean of the replies receives the mean as a
    single reply; buffers are then averaged without the strategy's server optimiser.

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
        wanted: whether to run an attack on an update. If None, all are run.
        on_intercept: called with every update that is kept.
        on_attacked: called with every reconstruction; ``reconstructions`` also lists them, with the
            attack's name and the update's key.
        on_progress: called repeatedly by an attack; it may raise ``Stopped`` to end the run.
        on_failure: called with round, client number and reason when a client does not answer or an
            attack on its update fails. If None, failures are logged.

    Raises:
        BadInput: if there are ``attacks`` without ``knowledge``, or ``model`` is no valid name.
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
        wanted: AttackFilter | None = None,
        on_intercept: Callable[[InterceptedUpdate], None] | None = None,
        on_attacked: OnAttacked | None = None,
        on_progress: OnProgress | None = None,
        on_failure: Callable[[int, int, str], None] | None = None,
    ) -> None:
        if attacks and knowledge is None:
            raise BadInput("Expected `knowledge` where `attacks` are given, got none.")
        check_name("the model", model)
        self.inner = inner
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
        self.failures = 0
        self.intercepted: list[InterceptedUpdate | Path] = []
        self.reconstructions: list[tuple[str, str, Reconstruction]] = []
        self.clients = {} if clients is None else clients
        self._numbers: dict[int, int] = {}
        self._wanted = wanted
        self._on_intercept = on_intercept
        self._on_attacked = on_attacked
        self._on_progress = on_progress
        self._on_failure = on_failure
        self._sent: Tensors = {}
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
        return result

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
        """Return the inner strategy's messages, and record the weights and nodes in them."""
        round_ = self._round(server_round)
        self.current_round = round_
        if self.seeded_sampling:
            random.seed(derive_seed(self.seed, round_))
        messages = list(self._inner_steps["configure_train"](round_, arrays, config, grid))
        self._sent = records.to_tensors(arrays)
        if self.folder is not None:
            remove_round(self.folder, round_)
        self._sampled_nodes = [message.metadata.dst_node_id for message in messages]
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Intercept the replies, then aggregate them with the inner strategy.

        Raises:
            BadInput: if clients send gradients and no learning rate is known.
        """
        round_ = self._round(server_round)
        received = list(replies)
        self._count_failures(round_, received)
        answers = [reply for reply in received if not reply.has_error()]
        # By reply; each is decoded once, since decoding takes long for a large gradient.
        gradients = {
            id(reply): records.to_compact(reply.content.array_records[records.GRADIENT])
            for reply in answers
            if records.sends_gradient(reply.content)
        }
        for reply in answers:
            client = self._number(reply.metadata.src_node_id)
            if self.victims.includes(round_, client):
                try:
                    self._intercept(round_, client, reply, gradients.get(id(reply)))
                except (OSError, BadInput) as error:
                    # A full disk, say, must not stop the training.
                    self._fail(round_, client, f"its update could not be kept: {error}")
        step = self._inner_steps["aggregate_train"]
        result: tuple[ArrayRecord | None, MetricRecord | None]
        if not gradients:
            result = step(round_, received)
            return result
        ready, buffers = self._with_weights(received, gradients)
        arrays, metrics = step(round_, ready)
        if arrays is None:
            return None, metrics
        # Counts and statistics are averaged, not changed by the server's optimiser.
        return records.with_dtypes_of(ArrayRecord({**arrays, **buffers}), self._sent), metrics

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
        if uses_only_the_mean(self.inner) and records.can_be_merged(senders, gradients):
            others = [reply for reply in received if id(reply) not in decoded]
            names = list(senders[0].content.array_records.get(records.BUFFERS, ArrayRecord()))
            merged = records.merge(senders, gradients, self._sent, self.learning_rate)
            arrays = merged.content.array_records[records.ARRAYS]
            return [merged, *others], {name: arrays[name] for name in names}
        for reply, gradient in zip(senders, gradients, strict=True):
            records.replace_gradient_by_weights(reply, gradient, self._sent, self.learning_rate)
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
        """Aggregate the replies with the inner strategy."""
        step = self._inner_steps["aggregate_evaluate"]
        metrics: MetricRecord | None = step(self._round(server_round), replies)
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
                self.failures += 1
                reason = reasons.get(node, "it did not answer in time")
                self._fail(round_, self._number(node), reason)

    def _intercept(
        self, round_: int, client: int, reply: Message, gradient: CompactTensors | None
    ) -> None:
        content = reply.content
        arrays = content.array_records
        if not arrays:
            return
        if gradient is None:
            received = records.to_tensors(next(iter(arrays.values())))
        else:
            received = dict(gradient.encoded)
        if records.BUFFERS in arrays:
            received |= records.to_tensors(arrays[records.BUFFERS])
        metrics: Mapping[str, Any] = next(iter(content.metric_records.values()), {})
        update = InterceptedUpdate(
            round=round_,
            client=client,
            protocol="fedavg" if gradient is None else "fedsgd",
            num_examples=int(metrics.get(records.EXAMPLES, 1)),
            model=self.model,
            sent=self._sent,
            received=received if gradient is None else CompactTensors(received),
        )
        self.intercepted.append(
            update if self.folder is None else update.save(self.folder, compare=False)
        )
        if self._on_intercept is not None:
            self._on_intercept(update)
        if self.victims.when == "during":
            self._attack(update)

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
            for refused in attack_updates(
                attack,
                [update],
                lambda _, known=knowledge: known,  # type: ignore[misc]
                finished=partial(self._record, attack),
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
        self, attack: Attack, update: InterceptedUpdate, reconstruction: Reconstruction
    ) -> None:
        self.reconstructions.append((attack.name, update.key, reconstruction))
        if self._on_attacked is not None:
            self._on_attacked(attack, update, reconstruction)

    def _fail(self, round_: int, client: int, reason: str) -> None:
        if self._on_failure is None:
            logger.warning("round %d, client %d: %s", round_, client, reason)
        else:
            self._on_failure(round_, client, reason)

    def _knowledge_of(self, update: InterceptedUpdate) -> Knowledge:
        if self.knowledge is None:
            raise BadInput("Expected `knowledge` where `attacks` are given, got none.")
        if not isinstance(self.knowledge, Knowledge):
            return self.knowledge(update)
        if self.knowledge.labels is not None:
            return self.knowledge
        return self.knowledge.of_samples(update.num_examples)


def uses_only_the_mean(strategy: Strategy) -> bool:
    """Whether a strategy uses only the weighted mean of the replies."""
    usual = getattr(strategy, "train_metrics_aggr_fn", None) is aggregate_metricrecords
    usual = usual and getattr(strategy, "weighted_by_key", None) == records.EXAMPLES
    return usual and type(strategy) in (FedAvg, FedAvgM, FedAdagrad, FedAdam, FedProx, FedYogi)


def _load(path: Path) -> InterceptedUpdate:
    return InterceptedUpdate.load(path)


class Stopped(Exception):
    """The run was told to stop while the server waited for clients."""
