"""The server: a Flower ServerApp that runs a strategy round by round and can be resumed."""

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as flower_strategies
from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fedleak.attacks.base import Attack, Progress
from fedleak.config import RunConfig
from fedleak.data import PrivateData
from fedleak.errors import BadInput, require, unknown_name
from fedleak.federation import records
from fedleak.federation.engine.checkpoint import Outcome, restore, write_checkpoint
from fedleak.federation.engine.client import evaluate_model
from fedleak.federation.engine.grid import OrderedGrid
from fedleak.federation.engine.shared_weights import SharedFolder
from fedleak.federation.engine.virtual_clients import SeatedGrid, seats
from fedleak.federation.strategy import Attacked, MaliciousStrategy, Stopped, Wanted
from fedleak.models import LightningModule
from fedleak.models.optimiser_facts import local_learning_rate
from fedleak.registry import load_class
from fedleak.runs.observer import Observer
from fedleak.runtime.quiet import quiet
from fedleak.runtime.seeds import derive_seed
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

# What strategies call the learning rate of their own step.
SERVER_RATES = ("eta", "server_learning_rate")
# Seconds that the server waits beyond the clients' own time limit, for what is on its way.
GRACE_SECONDS = 30.0


@dataclass
class Line:
    """Between the thread of the server and the one that has started it.

    Args:
        stop: set to make the server give up.
        begun: set by the server when it begins.
        ended: set by the server once it needs no client any more.
        error: what ended the server before its time.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


@dataclass(frozen=True)
class Interception:
    """What the malicious side of the server is given.

    Args:
        folder: where intercepted updates are written.
        attacks: attacks to be run in the round itself; empty if they come later.
        knowledge: what the server knows of an update.
        on_attacked: called with every reconstruction made in a round.
        wanted: whether an attack on an update has not been done before.
    """

    folder: Path
    attacks: Sequence[Attack]
    knowledge: Callable[[InterceptedUpdate], Knowledge]
    on_attacked: Attacked
    wanted: Wanted


def make_strategy(config: RunConfig) -> Strategy:
    """The honest inner strategy of a configuration.

    Raises:
        BadInput: if there is no such strategy, or it takes other options.
    """
    federation = config.federation
    choices = {n: getattr(flower_strategies, n) for n in flower_strategies.__all__}
    known = {n: c for n, c in choices.items() if inspect.isclass(c) and issubclass(c, Strategy)}
    name = federation.strategy
    found = load_class(name) if "." in name else known.get(name)
    if found is None:
        raise unknown_name("strategy", name, known)
    share = federation.clients_per_round
    settings: dict[str, Any] = {
        "min_train_nodes": share or 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": federation.clients,
        "fraction_evaluate": 1.0 if federation.client_evaluation else 0.0,
    }
    accepted = inspect.signature(found).parameters
    sampling = {"fraction_train", "min_train_nodes"}
    if share is not None:
        require(
            "fraction_train" in accepted and not sampling & set(federation.strategy_options),
            f"Expected a strategy that samples clients, and none of {', '.join(sorted(sampling))} "
            "among its options, where `federation.clients_per_round` is given, got "
            f"{name} with the options {federation.strategy_options}.",
        )
        settings["fraction_train"] = share / federation.clients
    for option in federation.strategy_options:
        if option not in accepted:
            raise unknown_name(f"option of strategy {name}", option, accepted)
    settings = {option: value for option, value in settings.items() if option in accepted}
    try:
        with quiet():
            strategy = found(**settings | federation.strategy_options)
    except (TypeError, ValueError) as error:
        raise BadInput(f"Expected options that strategy {name} takes: {error}.") from error
    if not isinstance(strategy, Strategy):
        raise BadInput(f"Expected `federation.strategy` to be a Strategy of Flower, got {name}.")
    require(
        federation.learning_rate_decay == 1 or any(hasattr(strategy, r) for r in SERVER_RATES),
        f"Expected a strategy with {' or '.join(SERVER_RATES)} where "
        f"`federation.learning_rate_decay` is given, got {name}: take FedAdam or FedAvgM.",
    )
    if federation.learning_rate_decay != 1 and isinstance(strategy, flower_strategies.FedAvgM):
        strategy.server_opt = True  # it would look at its first learning rate alone
    return strategy


def server_app(
    config: RunConfig,
    data: PrivateData,
    model: LightningModule,
    inner: Strategy,
    interception: Interception,
    checkpoint: Path,
    outcome: Outcome,
    observer: Observer,
    line: Line,
    patience: float,
    shared: SharedFolder | None = None,
) -> ServerApp:
    """The ServerApp of a configuration.

    Args:
        config: the configuration of this federation.
        data: gives the test set.
        model: the global model before its first round, which evaluations load weights into.
        inner: the honest inner strategy.
        interception: the malicious side.
        checkpoint: file that holds the state between rounds, for resuming.
        outcome: what has been done before; goes on as the rounds go by.
        observer: told of what happens.
        line: how the server is told to stop, and tells that it has ended.
        patience: seconds that a round may take.
        shared: where to leave what all clients of a round are sent; none: in the messages.
    """
    app = ServerApp()
    federation, name = config.federation, config.model_name

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        line.begun.set()
        try:
            run(grid)
        except BaseException as error:
            # Flower passes on no KeyboardInterrupt, so all goes this way.
            line.error = error
            raise Stopped from error
        finally:
            line.ended.set()

    def run(grid: Grid) -> None:
        done, failures = outcome.rounds, outcome.failures
        # A copy: an evaluation loads other weights into the model.
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        if done:
            weights = restore(checkpoint, inner, weights)
        training = federation.clients_per_round or federation.clients
        observer.federation_started(name, training, done + 1, federation.rounds)

        def on_reply(client: int, reply: Message) -> None:
            if not reply.has_content() or reply.metadata.message_type != MessageType.TRAIN:
                return
            metrics = reply.content.metric_records[records.METRICS]
            scalars = {n: float(v) for n, v in metrics.items() if isinstance(v, int | float)}
            observer.client_answered(name, strategy.current_round, client, scalars)

        def on_failure(round_: int, client: int, reason: str) -> None:
            observer.client_failed(name, round_, client, _in_short(reason))

        def on_progress(attack: Attack, progress: Progress) -> None:
            if line.stop.is_set():
                raise Stopped
            observer.attack_progressed(attack.name, name, progress)

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            round_ = server_round + done
            if server_round == 0 and done:
                return None  # evaluated before the interruption
            state = records.to_tensors(arrays)
            metrics: dict[str, float] = {}
            if round_ % federation.evaluate_every == 0 or round_ == federation.rounds:
                model.load_state_dict(state)
                metrics = evaluate_model(model, data.test_set, derive_seed(config.seed, round_))
                outcome.metrics[round_] = metrics
            outcome.rounds, outcome.failures = round_, failures + strategy.failures
            if round_:
                _decay(inner, federation.learning_rate_decay)
                write_checkpoint(checkpoint, state, inner, outcome)
            observer.round_evaluated(name, round_, metrics)
            return MetricRecord(dict(metrics)) if metrics else None

        seated = (
            SeatedGrid(grid, federation.clients) if seats(config) < federation.clients else grid
        )
        ordered = OrderedGrid(
            seated, federation.clients, stop=line.stop, on_reply=on_reply, shared=shared
        )
        strategy = MaliciousStrategy(
            inner,
            attacks=interception.attacks,
            knowledge=interception.knowledge,
            learning_rate=local_learning_rate(model),
            victims=config.victims,
            folder=interception.folder,
            model=name,
            clients=ordered.clients,
            seed=config.seed,
            seeded_sampling=True,
            first_round=done + 1,
            device=config.device,
            wanted=interception.wanted,
            on_attacked=interception.on_attacked,
            on_progress=on_progress,
            on_failure=on_failure,
        )
        strategy.start(
            ordered,
            records.to_record(weights),
            num_rounds=federation.rounds - done,
            timeout=patience,
            evaluate_fn=evaluate,
        )

    return app


def _decay(strategy: Strategy, factor: float) -> None:
    for name in SERVER_RATES:
        if factor != 1 and hasattr(strategy, name):
            setattr(strategy, name, factor * getattr(strategy, name))


def _in_short(reason: str) -> str:
    """What a client said last, from the report that Flower and Ray make of it."""
    said = reason.rpartition("occurred. Message: ")[2].strip().removesuffix("'>")
    return " ".join(said.split())
