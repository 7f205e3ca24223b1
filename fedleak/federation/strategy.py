"""The malicious server: any Flower strategy, with an ear on what the clients send."""

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
from fedleak.updates.files import Tensors, check_name
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

logger = logging.getLogger(__name__)

Attacked = Callable[[Attack, InterceptedUpdate, Reconstruction], None]
Progressed = Callable[[Attack, Progress], None]
Wanted = Callable[[Attack, InterceptedUpdate], bool]

# What Flower calls in every round, and what is listened to.
STEPS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")


class MaliciousStrategy(Strategy):
    """Wraps a Flower strategy, changes nothing in its training, and attacks the updates it sees.

    Clients that return weights are passed on as they are. Clients that return a gradient (protocol
    fedsgd) are passed on as the weights after one step with it, so that the inner strategy works
    unchanged; one that takes no more than their mean is given that, as a single reply, and buffers
    are averaged whatever its optimiser is.

    Args:
        inner: the strategy that runs the federation.
        attacks: what to do with the updates.
        knowledge: what the server knows, the same of all updates or by a function of the update;
            needed for attacks.
        learning_rate: of the step that turns a gradient into weights (fedsgd); none: the learning
            rate in ``knowledge``.
        victims: whose updates to keep, and when to attack them.
        folder: where to write each intercepted update; none: they are kept in memory.
        model: the model's name in the updates' headers, of letters, digits and a few signs.
        clients: node id -> client number, looked at when needed; nodes not in it are numbered as
            they appear.
        seed: seed of the attacks. Python's random state, by which strategies sample clients, is
            seeded from it at every round if ``seeded_sampling``.
        seeded_sampling: whether to do so; it makes a resumed federation sample as it would have.
        first_round: number of the first round, more than 1 where a federation is resumed.
        device: where the attacks compute.
        wanted: whether an attack on an update is still to be made; none: always.
        on_intercept: called with every update that is kept.
        on_attacked: called with every reconstruction; ``reconstructions`` holds them too, with the
            attack's name and the update's key.
        on_progress: called now and then by an attack; it may raise ``Stopped`` to end the run.
        on_failure: called with round, client number and reason, when a client does not answer or
            an attack on its update fails; none: it is logged.
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
        wanted: Wanted | None = None,
        on_intercept: Callable[[InterceptedUpdate], None] | None = None,
        on_attacked: Attacked | None = None,
        on_progress: Progressed | None = None,
        on_failure: Callable[[int, int, str], None] | None = None,
    ) -> None:
        if attacks and knowledge is None:
            raise BadInput("Expected `knowledge` where `attacks` are given, got none.")
        check_name("the model", model)
        self.inner = inner
        self._inner_steps = {name: getattr(inner, name) for name in STEPS}
        self.attacks = attacks
        self.knowledge = knowledge
        if learning_rate is None and isinstance(knowledge, Knowledge):
            learning_rate = knowledge.learning_rate
        self.learning_rate = learning_rate
        self.victims = victims
        self.folder = folder
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
        self._asked: list[int] = []

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """Run the inner strategy's own loop, then attack if that is to be done afterwards."""
        with self._listening():
            result = self.inner.start(*args, **kwargs)
        if self.attacks and self.victims.when == "after":
            for kept in self.intercepted:
                self._attack(kept if isinstance(kept, InterceptedUpdate) else _load(kept))
        return result

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Within the block, the inner strategy's own loop calls the methods here.

        Its ``start`` may do anything, such as call ``super().start`` or set attributes, and so has
        to run on the inner strategy itself.
        """
        for name in STEPS:
            setattr(self.inner, name, getattr(self, name))
        try:
            yield
        finally:
            for name in STEPS:
                delattr(self.inner, name)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """What the inner strategy sends, noted on the way."""
        round_ = self._round(server_round)
        self.current_round = round_
        if self.seeded_sampling:
            random.seed(derive_seed(self.seed, round_))
        messages = list(self._inner_steps["configure_train"](round_, arrays, config, grid))
        self._sent = records.to_tensors(arrays)
        self._asked = [message.metadata.dst_node_id for message in messages]
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the inner strategy makes of the replies, after they have been looked at."""
        round_ = self._round(server_round)
        received = list(replies)
        self._count_failures(round_, received)
        answers = [reply for reply in received if not reply.has_error()]
        # By reply, each decoded once: it is a good part of what a large gradient costs.
        gradients = {
            id(reply): records.to_compact(reply.content.array_records[records.GRADIENT])
            for reply in answers
            if records.sends_gradient(reply.content)
        }
        for reply in answers:
            client = self._number(reply.metadata.src_node_id)
            if self.victims.includes(round_, client):
                self._intercept(round_, client, reply, gradients.get(id(reply)))
        step = self._inner_steps["aggregate_train"]
        result: tuple[ArrayRecord | None, MetricRecord | None]
        if not gradients:
            result = step(round_, received)
            return result
        ready, buffers = self._with_weights(received, gradients)
        arrays, metrics = step(round_, ready)
        if arrays is None:
            return None, metrics
        # A server's optimiser has no say in counts and statistics.
        return records.as_sent(ArrayRecord({**arrays, **buffers}), self._sent), metrics

    def _with_weights(
        self, received: list[Message], decoded: Mapping[int, CompactTensors]
    ) -> tuple[list[Message], dict[str, Array]]:
        """Replies in which there are weights in the place of gradients, and the buffers' means.

        There are no such means where the inner strategy wants every client's own.
        """
        if self.learning_rate is None:
            raise BadInput("Expected `learning_rate` where clients send gradients, got none.")
        senders = [reply for reply in received if id(reply) in decoded]
        gradients = [decoded[id(reply)] for reply in senders]
        if takes_the_mean(self.inner) and records.are_alike(senders, gradients):
            others = [reply for reply in received if id(reply) not in decoded]
            names = list(senders[0].content.array_records.get(records.BUFFERS, ArrayRecord()))
            merged = records.merge(senders, gradients, self._sent, self.learning_rate)
            arrays = merged.content.array_records[records.ARRAYS]
            return [merged, *others], {name: arrays[name] for name in names}
        for reply, gradient in zip(senders, gradients, strict=True):
            records.as_weights(reply, gradient, self._sent, self.learning_rate)
        return received, {}

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """What the inner strategy sends."""
        step = self._inner_steps["configure_evaluate"]
        messages: Iterable[Message] = step(self._round(server_round), arrays, config, grid)
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """What the inner strategy makes of the replies."""
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
        for node in self._asked:
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
        self.intercepted.append(update if self.folder is None else update.save(self.folder))
        if self._on_intercept is not None:
            self._on_intercept(update)
        if self.victims.when == "during":
            self._attack(update)

    def _attack(self, update: InterceptedUpdate) -> None:
        """Attack one update; neither rubbish in it nor a faulty attack stops the training."""
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


def takes_the_mean(strategy: Strategy) -> bool:
    """Whether a strategy uses nothing of the replies but their weighted mean."""
    usual = getattr(strategy, "train_metrics_aggr_fn", None) is aggregate_metricrecords
    usual = usual and getattr(strategy, "weighted_by_key", None) == records.EXAMPLES
    return usual and type(strategy) in (FedAvg, FedAvgM, FedAdagrad, FedAdam, FedProx, FedYogi)


def _load(path: Path) -> InterceptedUpdate:
    return InterceptedUpdate.load(path)


class Stopped(Exception):
    """The run was told to stop while the server waited for clients."""
