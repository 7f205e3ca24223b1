"""The server: a Flower ServerApp that runs a strategy round by round and can be resumed."""

import inspect
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as flower_strategies
from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fedleak.attacks.base import Attack, Progress
from fedleak.build import first_batch_of, most_examples
from fedleak.config import RunConfig
from fedleak.data import PrivateData
from fedleak.errors import BadInput, require, unknown_name
from fedleak.federation import records
from fedleak.federation.engine.checkpoint import Outcome, restore, write_checkpoint
from fedleak.federation.engine.client import evaluate_model
from fedleak.federation.engine.client_errors import last_message
from fedleak.federation.engine.grid import POLL_SECONDS, OrderedGrid
from fedleak.federation.engine.shared_weights import SharedWeightsFolder
from fedleak.federation.engine.virtual_clients import VirtualClientGrid, num_supernodes
from fedleak.federation.strategy import AttackFilter, MaliciousStrategy, OnAttacked, Stopped
from fedleak.models import LightningModule
from fedleak.registry import load_class
from fedleak.runs.observer import Observer
from fedleak.runs.spending import Spending
from fedleak.runtime.quiet import quiet
from fedleak.runtime.seeds import derive_seed
from fedleak.servers.exchanges import Exchanges
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

# Names that Flower's strategies use for the learning rate of the server's step.
SERVER_RATE_NAMES = ("eta", "server_learning_rate")
# Seconds that the server waits beyond the clients' own time limit, for replies in transit.
GRACE_SECONDS = 30.0


@dataclass
class ServerControl:
    """Events that the server's thread shares with the thread that has started it.

    Args:
        stop: set from outside to make the server stop.
        started: set by the server when it starts.
        ended: set by the server once it needs no client any more.
        error: the exception that ended the server, if one did.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


@dataclass(frozen=True)
class Interception:
    """The configuration of the malicious side of the server.

    Args:
        folder: where intercepted updates are written.
        attacks: attacks that run during the round; empty if they run afterwards.
        knowledge: gives what the server knows about an update.
        on_attacked: called with every reconstruction made during a round.
        wanted: whether an attack on an update is still to be made.
        exchanges: what a malicious server sends to its victims. If None, it only listens.
    """

    folder: Path
    attacks: Sequence[Attack]
    knowledge: Callable[[InterceptedUpdate], Knowledge]
    on_attacked: OnAttacked
    wanted: AttackFilter
    exchanges: Exchanges | None = None


def make_strategy(config: RunConfig) -> Strategy:
    """The honest inner strategy of a configuration.

    Raises:
        BadInput: if there is no such strategy, it does not accept an option, or an option is out of
            its range.
    """
    federation = config.federation
    options = dict(federation.strategy_options)
    name = federation.strategy
    found = _strategy_class(name)
    around, own = None, inspect.signature(found).parameters
    if "strategy" in own and own["strategy"].default is inspect.Parameter.empty:
        # Such as those for differential privacy: around another strategy, FedAvg by default.
        around, name = found, str(options.pop("strategy", "FedAvg"))
        of_wrapper = {option: options.pop(option) for option in list(options) if option in own}
        if "num_sampled_clients" in own:
            of_wrapper.setdefault(
                "num_sampled_clients", federation.clients_per_round or federation.size
            )
        found = _strategy_class(name)
    strategy = _made_strategy(found, name, config, options)
    if around is not None:
        strategy = _called(around, federation.strategy, {"strategy": strategy} | of_wrapper)
    require(
        federation.learning_rate_decay == 1 or any(hasattr(strategy, r) for r in SERVER_RATE_NAMES),
        f"Expected a strategy with {' or '.join(SERVER_RATE_NAMES)} where "
        f"`federation.learning_rate_decay` is given, got {federation.strategy}: take FedAdam or "
        "FedAvgM.",
    )
    if federation.learning_rate_decay != 1 and isinstance(strategy, flower_strategies.FedAvgM):
        strategy.server_opt = True  # else it ignores changes of its learning rate
    return strategy


def _strategy_class(name: str) -> type[Any]:
    """The class of a strategy, of Flower or at a dotted path."""
    choices = {n: getattr(flower_strategies, n) for n in flower_strategies.__all__}
    known = {n: c for n, c in choices.items() if inspect.isclass(c) and issubclass(c, Strategy)}
    found: type[Any] | None = load_class(name) if "." in name else known.get(name)
    if found is None:
        raise unknown_name("strategy", name, known)
    return found


def _made_strategy(
    found: type[Any], name: str, config: RunConfig, options: Mapping[str, Any]
) -> Strategy:
    """A strategy that aggregates itself, which takes part of a configuration's settings."""
    federation = config.federation
    share = federation.clients_per_round
    accepted = inspect.signature(found).parameters
    fraction = accepted.get("fraction_train")
    all_train = "fraction_train" not in options
    all_train = all_train and fraction is not None and fraction.default == 1.0
    settings: dict[str, Any] = {
        # Else a round for which a node comes back late would be made without it.
        "min_train_nodes": share or (federation.size if all_train else 1),
        "min_evaluate_nodes": 1,
        "min_available_nodes": federation.size,
        "fraction_evaluate": 1.0 if federation.client_evaluation else 0.0,
    }
    sampling = {"fraction_train", "min_train_nodes"}
    if share is not None:
        require(
            "fraction_train" in accepted and not sampling & set(options),
            f"Expected a strategy that samples clients, and none of {', '.join(sorted(sampling))} "
            "among its options, where `federation.clients_per_round` is given, got "
            f"{name} with the options {dict(options)}.",
        )
        settings["fraction_train"] = share / federation.size
    for option in options:
        if option not in accepted:
            raise unknown_name(f"option of strategy {name}", option, accepted)
    settings = {option: value for option, value in settings.items() if option in accepted}
    return _called(found, name, settings | dict(options))


def _called(found: type[Any], name: str, options: Mapping[str, Any]) -> Strategy:
    """A strategy made with options.

    Raises:
        BadInput: if it does not take them, or what is made is no strategy.
    """
    try:
        with quiet():
            strategy = found(**options)
    except (TypeError, ValueError) as error:
        text = str(error).rstrip(".")
        raise BadInput(f"Expected options that strategy {name} accepts: {text}.") from error
    if not isinstance(strategy, Strategy):
        raise BadInput(f"Expected `federation.strategy` to be a Strategy of Flower, got {name}.")
    return strategy


def server_app(server: "FederationServer") -> ServerApp:
    """The ServerApp that runs a server, and reports to its ``control`` when it starts and ends.

    Args:
        server: the server.
    """
    app, control = ServerApp(), server.control

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        control.started.set()
        try:
            server.run(grid)
        except BaseException as error:
            # Flower does not pass on a KeyboardInterrupt, so every exception is kept here.
            control.error = error
            raise Stopped from error
        finally:
            control.ended.set()

    return app


@dataclass
class FederationServer:
    """Runs the remaining rounds of a federation; after each, it evaluates and saves the state.

    Args:
        config: the configuration of this federation.
        data: gives the test set.
        model: the global model before its first round, which evaluations load weights into.
        inner: the honest inner strategy.
        interception: the malicious side.
        checkpoint: file that holds the state between rounds, for resuming.
        outcome: the results of the rounds done so far; it is updated after each round.
        observer: notified of events.
        control: how the server is stopped, and how it reports that it has ended.
        round_timeout: time limit of a round, in seconds.
        shared: where to store the weights that are sent to all clients of a round. If None, the
            messages carry them.
        poll_seconds: time between two looks for replies.
        node_each: whether the grid has a node for each client, whatever their number. Otherwise
            it has as many as :func:`num_supernodes` says.
        spending: counts what is spent of the clients' privacy, and ends the federation before a
            round that its budget does not hold. If None, nothing is counted.
    """

    config: RunConfig
    data: PrivateData
    model: LightningModule
    inner: Strategy
    interception: Interception
    checkpoint: Path
    outcome: Outcome
    observer: Observer
    control: ServerControl
    round_timeout: float
    shared: SharedWeightsFolder | None = None
    poll_seconds: float = POLL_SECONDS
    node_each: bool = False
    spending: Spending | None = None
    _strategy: MaliciousStrategy = field(init=False)

    def __post_init__(self) -> None:
        self._asked: list[int] = []
        self._examples: dict[int, int] = {}
        if self.spending is not None:
            replay(self.spending, self.outcome)
        self._name = self.config.model_name
        self._rounds_before, self._failures_before = self.outcome.rounds, self.outcome.failures
        self._lost_before = dict(self.outcome.lost)

    def run(self, grid: Grid) -> None:
        """Run the rounds that are not done yet.

        Args:
            grid: Flower's own grid, or one around it.

        Raises:
            Stopped: if ``control`` told the server to stop.
            BadInput: if the checkpoint is damaged or of another federation.
        """
        federation = self.config.federation
        # Copied, since an evaluation loads other weights into the model.
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        if self._rounds_before:
            weights = restore(self.checkpoint, self.inner, weights)
        sampled = federation.clients_per_round or federation.size
        first_round = self._rounds_before + 1
        self.observer.federation_started(self._name, sampled, first_round, federation.rounds)
        if not self.node_each and num_supernodes(self.config) < federation.size:
            grid = VirtualClientGrid(grid, federation.size)
        ordered = OrderedGrid(
            grid, federation.size, stop=self.control.stop, on_reply=self._on_reply,
            shared=self.shared, poll_seconds=self.poll_seconds,
        )  # fmt: skip
        self._strategy = self._malicious_strategy(ordered.clients)
        self._state = weights
        try:
            self._strategy.start(
                ordered,
                records.to_record(weights),
                num_rounds=federation.rounds - self._rounds_before,
                timeout=self.round_timeout,
                evaluate_fn=self._end_round,
            )
        except BudgetSpent as end:
            self._end(str(end))

    def _malicious_strategy(self, clients: Mapping[int, int]) -> MaliciousStrategy:
        training = first_batch_of(self.config, self.data, self.model).training
        return MaliciousStrategy(
            self.inner,
            attacks=self.interception.attacks,
            knowledge=self.interception.knowledge,
            # A schedule may begin with 0, by which nothing would be learnt.
            learning_rate=training.rate_at(0) or training.rate,
            victims=self.config.victims,
            folder=self.interception.folder,
            model=self._name,
            clients=clients,
            seed=self.config.seed,
            seeded_sampling=True,
            first_round=self._rounds_before + 1,
            device=self.config.device,
            max_examples=most_examples(self.config, self.data),
            server=self.interception.exchanges,
            wanted=self.interception.wanted,
            on_attacked=self.interception.on_attacked,
            on_progress=self._on_progress,
            on_failure=self._on_failure,
            on_asked=self._on_asked,
        )

    def _on_asked(self, round_: int, clients: list[int]) -> None:
        reason = "" if self.spending is None else self.spending.exceeded(round_, clients)
        if reason:
            raise BudgetSpent(reason)
        self._asked, self._examples = clients, {}

    def _end(self, reason: str) -> None:
        """End the federation after its last whole round, which is evaluated as such."""
        outcome = self.outcome
        outcome.ended = reason
        if self.spending is not None:
            self.spending.ended = reason
        if outcome.rounds not in outcome.metrics:
            metrics = self._evaluate(outcome.rounds, self._state, last=True)
            self.observer.round_evaluated(self._name, outcome.rounds, metrics)
        write_checkpoint(self.checkpoint, self._state, self.inner, outcome)

    def _count(self, round_: int) -> None:
        """Count what the clients of a round have spent."""
        spending, outcome = self.spending, self.outcome
        if spending is None:
            return
        outcome.asked[round_] = self._asked
        weight = spending.weight(round_, self._examples)
        if weight is not None:
            outcome.weights[round_] = weight
        rows = spending.record(round_, self._asked, weight)
        self.observer.privacy_spent(self._name, round_, rows)

    def _on_reply(self, client: int, reply: Message) -> None:
        if not reply.has_content() or reply.metadata.message_type != MessageType.TRAIN:
            return
        metrics = reply.content.metric_records.get(records.METRICS, MetricRecord())
        number = metrics.get(records.EXAMPLES)
        if isinstance(number, int) and number > 0:
            self._examples[client] = number
        scalars = {n: float(v) for n, v in metrics.items() if isinstance(v, int | float)}
        self.observer.client_answered(self._name, self._strategy.current_round, client, scalars)

    def _on_failure(self, round_: int, client: int, reason: str) -> None:
        self.observer.client_failed(self._name, round_, client, last_message(reason))

    def _on_progress(self, attack: Attack, progress: Progress) -> None:
        if self.control.stop.is_set():
            raise Stopped
        self.observer.attack_progressed(attack.name, self._name, progress)

    def _end_round(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Evaluate the global model and save the state; Flower calls it after each round.

        Args:
            server_round: number of the round since this server has started; 0 before the first.
            arrays: the global weights.
        """
        if server_round == 0 and self._rounds_before:
            return None  # evaluated before the interruption
        round_ = server_round + self._rounds_before
        state = self._state = records.to_tensors(arrays)
        metrics = self._evaluate(round_, state)
        outcome = self.outcome
        outcome.rounds = round_
        outcome.failures = self._failures_before + self._strategy.failures
        outcome.lost = self._lost_before | self._strategy.lost
        if outcome.diverged is None and (
            self._strategy.diverged is not None or not all(map(math.isfinite, metrics.values()))
        ):
            outcome.diverged = round_
        if round_:
            self._count(round_)
            _decay(self.inner, self.config.federation.learning_rate_decay)
            write_checkpoint(self.checkpoint, state, self.inner, outcome)
        self.observer.round_evaluated(self._name, round_, metrics)
        return MetricRecord(dict(metrics)) if metrics else None

    def _evaluate(self, round_: int, state: Tensors, *, last: bool = False) -> dict[str, float]:
        """Test metrics by name; empty in rounds that are not evaluated."""
        federation = self.config.federation
        if round_ % federation.evaluate_every and round_ != federation.rounds and not last:
            return {}
        self.model.load_state_dict(state)
        seed = derive_seed(self.config.seed, round_)
        metrics = evaluate_model(self.model, self.data.test_set, seed)
        self.outcome.metrics[round_] = metrics
        return metrics


def replay(spending: Spending, outcome: Outcome) -> None:
    """Count what the rounds before an interruption have spent, unless it is counted already.

    Args:
        spending: counts it.
        outcome: the results of those rounds.
    """
    spending.ended = outcome.ended
    if not spending.rows:
        for round_, clients in sorted(outcome.asked.items()):
            spending.record(round_, clients, outcome.weights.get(round_))


class BudgetSpent(Stopped):
    """The budget of privacy does not hold the next round."""


def _decay(strategy: Strategy, factor: float) -> None:
    for name in SERVER_RATE_NAMES:
        if factor != 1 and hasattr(strategy, name):
            setattr(strategy, name, factor * getattr(strategy, name))
