"""The server's strategy, its sampling of clients, its optimiser and its evaluation."""

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import load_file
from torch import Tensor

from fedleak import experiment
from fedleak.build import make_data, make_model
from fedleak.config import Federation, RunConfig, Victims
from fedleak.errors import BadInput
from fedleak.federation import client_app, records
from fedleak.federation.engine.client import evaluate_model
from fedleak.federation.engine.grid import OrderedGrid
from fedleak.federation.engine.server import (
    FederationServer,
    ServerControl,
    make_strategy,
    server_app,
)
from fedleak.federation.strategy import Stopped
from fedleak.registry import Plugin
from fedleak.runs.folder import RunFolder
from fedleak.runs.summary import read_summary
from fedleak.updates.files import Tensors
from tests.federation.fakes import FakeGrid, context_of, run_in_process
from tests.federation.runs import (
    Recorder,
    clients_by_class,
    in_process,
    tiny_config,
    tiny_data,
)
from tests.federation.user_models import RAISES
from tests.federation.user_runs import (
    EPSILON,
    RATE,
    USERS,
    config,
    literal_gradient,
    run,
    updates_of,
)

MODULES = "tests.federation.user_models"


def test_users_are_sampled_in_every_round_and_reproducibly(tmp_path: Path) -> None:
    seen = []
    for name in ("first", "second"):
        settings = config(tmp_path / name)
        run(settings)
        seen.append([(update.round, update.client) for update, _ in updates_of(settings)])
    assert seen[0] == seen[1]
    first, second = ({c for r, c in seen[0] if r == round_} for round_ in (1, 2))
    assert (len(first), len(second)) == (7, 7)
    assert first != second
    assert max(first | second) > 30  # not the first ones


@pytest.mark.parametrize("learning_rate", [1.0, 0.01])
def test_fedadam_matches_adam_on_the_sum_over_users(tmp_path: Path, learning_rate: float) -> None:
    """FedAdam as it is: Kingma and Ba's Adam, its bias correction being one step ahead.

    The paper's server adds the gradients of a round's K users and divides by the number N of all
    users. Adam does not notice the factor N / K but by its epsilon, which is scaled here; nor that
    FedAdam is given steps of the clients' learning rate, but for that.
    """
    rounds = 4
    settings = config(tmp_path / "run", {"learning_rate": learning_rate}, rounds=rounds)
    run(settings)
    groups: dict[int, list[Tensors]] = {}
    sent: dict[int, Tensors] = {}
    for update, truth in updates_of(settings):
        gradient = literal_gradient(settings, update.sent, truth)
        groups.setdefault(update.round, []).append({n: g.double() for n, g in gradient.items()})
        sent[update.round] = update.sent
    epsilon = EPSILON / learning_rate * len(groups[1]) / USERS
    theta = {name: value.double() for name, value in sent[1].items()}
    m = {name: torch.zeros_like(value) for name, value in theta.items()}
    v = {name: torch.zeros_like(value) for name, value in theta.items()}
    for step in range(1, rounds):
        scale = RATE * math.sqrt(1 - 0.99 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        for name in theta:
            total: Tensor = sum(gradient[name] for gradient in groups[step]) / USERS  # type: ignore[assignment]
            m[name] = 0.9 * m[name] + 0.1 * total
            v[name] = 0.99 * v[name] + 0.01 * total**2
            theta[name] = theta[name] - scale * m[name] / (v[name].sqrt() + epsilon)
            # Each round's gradients are those of float32 weights: the error does not add up.
            torch.testing.assert_close(
                sent[step + 1][name].double(), theta[name], rtol=1e-4, atol=2e-5
            )


def test_the_servers_learning_rate_falls(tmp_path: Path) -> None:
    distances = []
    for decay in (1.0, 0.1):
        settings = config(
            tmp_path / str(decay), rounds=3, strategy="FedAvgM", learning_rate_decay=decay,
            strategy_options={"server_learning_rate": 1.0},
        )  # fmt: skip
        run(settings)
        sent = {update.round: update.sent for update, _ in updates_of(settings)}
        moved = [
            float((sent[r + 1]["decoder.2.weight"] - sent[r]["decoder.2.weight"]).norm())
            for r in (1, 2)
        ]
        distances.append(moved)
    assert distances[0][0] == pytest.approx(distances[1][0])
    assert distances[1][1] == pytest.approx(0.1 * distances[0][1], rel=0.2)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"strategy": "FedAvg", "strategy_options": {}, "learning_rate_decay": 0.9},
         "a strategy with eta or server_learning_rate where `federation.learning_rate_decay`"),
        ({"strategy_options": {"fraction_train": 0.5}},
         "and none of fraction_train, min_train_nodes among its options"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        make_strategy(config(tmp_path, **changes))


def lenet_on_photos(output: Path, clients: int, rounds: int) -> RunConfig:
    model = {"optimizer": "adam", "learning_rate": 0.003}
    return RunConfig(
        data=Plugin("fedleak.data.photos.Photos"),
        model=Plugin("fedleak.models.lenet.LeNet", model),
        output=str(output),
        federation=Federation(clients=clients, rounds=rounds, protocol="fedavg", batch_size=32),
        victims=Victims(clients=[0], rounds=[1]),
    )


def plain_flower(config: RunConfig) -> dict[int, dict[str, float]]:
    """Metrics by round of Flower's own FedAvg with the same clients, without a malicious server."""
    data = make_data(config)
    model, metrics, server = make_model(config, data), {}, ServerApp()
    federation = config.federation

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        def evaluate(round_: int, arrays: ArrayRecord) -> MetricRecord:
            model.load_state_dict(records.to_tensors(arrays))
            metrics[round_] = evaluate_model(model, data.test_set, seed=0)
            return MetricRecord(dict(metrics[round_]))

        ordered = OrderedGrid(
            grid, federation.clients, stop=threading.Event(), on_reply=lambda *_: None
        )
        strategy = FedAvg(
            fraction_evaluate=0, min_train_nodes=1, min_available_nodes=federation.clients
        )
        strategy.start(
            ordered,
            records.to_record(model.state_dict()),
            num_rounds=federation.rounds,
            evaluate_fn=evaluate,
        )

    run_in_process(config, server, client_app(config))
    return metrics


def test_the_metrics_are_those_of_plain_flower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedleak.federation.engine.simulation.run_on_ray", run_in_process)
    config = lenet_on_photos(tmp_path / "run", 4, 2)
    observer = Recorder()
    summary = experiment.run(config, [observer])
    ours = {round_: metrics for _, round_, metrics in observer.arguments("round_evaluated")}
    # To the last bit: the same weights give the same loss.
    assert ours == plain_flower(config)
    assert list(ours) == [0, 1, 2]
    assert ours[0]["test/accuracy"] == pytest.approx(1 / 8, abs=0.03)
    assert summary["federation"]["accuracy"] == ours[2]["test/accuracy"]


def test_the_server_evaluates_at_the_given_interval_and_after_the_last_round(
    tmp_path: Path,
) -> None:
    observers = []
    for every in (1, 3):
        config = tiny_config(
            tiny_data(tmp_path), tmp_path / str(every), rounds=5, evaluate_every=every,
            victim_clients=[0], victim_rounds=[1],
        )  # fmt: skip
        observers.append(Recorder())
        with in_process():
            summary = experiment.run(config, [observers[-1]])
    (always, seldom) = (
        {round_: metrics for _, round_, metrics in observer.arguments("round_evaluated")}
        for observer in observers
    )
    assert seldom == {round_: always[round_] if round_ in (0, 3, 5) else {} for round_ in always}
    assert summary["federation"]["accuracy"] == always[5]["test/accuracy"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), BadInput("Expected x.")])
def test_an_error_of_the_server_is_kept_for_the_thread_that_waits(error: BaseException) -> None:
    control = ServerControl()
    server = mock.Mock(spec=FederationServer, control=control)
    grid = FakeGrid([1], lambda _: None)

    def fail(given: Grid) -> None:
        assert given is grid
        assert control.started.is_set()
        assert not control.ended.is_set()
        raise error

    server.run.side_effect = fail
    with pytest.raises(Stopped):
        server_app(server)(grid=grid, context=context_of(0))
    assert control.error is error
    assert control.ended.is_set()
    assert not control.stop.is_set()


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_a_client_that_sends_nan_costs_itself_alone_and_a_resumed_run_goes_on(
    protocol: str, tmp_path: Path
) -> None:
    def settings(name: str) -> RunConfig:
        return tiny_config(
            tiny_data(tmp_path), tmp_path / name, protocol=protocol, rounds=3, model_args={},
            path=f"{MODULES}.Diverging", partition="shards", shards_per_client=1,
        )  # fmt: skip

    whole, observer = settings("whole"), Recorder()
    with in_process():
        summary = experiment.run(whole, [observer])
    lost = {"failures": 3, "lost_rounds": [1, 2, 3], "diverged_round": None}
    assert summary["federation"].items() >= lost.items()
    bad = clients_by_class(whole)[RAISES]
    failed = observer.arguments("client_failed")
    assert [(round_, client) for _, round_, client, _ in failed] == [(r, bad) for r in (1, 2, 3)]
    assert all("its reply was refused: its array 'layers.1." in reason for *_, reason in failed)
    weights = [load_file(path) for path in sorted(Path(whole.output).rglob("*-global.safetensors"))]
    assert all(bool(value.isfinite().all()) for state in weights for value in state.values())
    assert not torch.equal(weights[0]["layers.1.bias"], weights[2]["layers.1.bias"])
    # Interrupted after the second round, and resumed.
    parts = settings("parts")
    with in_process(), pytest.raises(KeyboardInterrupt):
        experiment.run(parts, [Recorder("client_answered", _interrupt_in_round(3))])
    with in_process():
        resumed = experiment.run(parts, resume=True)
    assert resumed["federation"] == summary["federation"]


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_a_client_that_calls_exit_costs_itself_alone(protocol: str, tmp_path: Path) -> None:
    settings = tiny_config(
        tiny_data(tmp_path), tmp_path / "run", path=f"{MODULES}.DyingByClass", protocol=protocol,
        model_args={"how": "sys.exit"}, partition="shards", shards_per_client=1,
    )  # fmt: skip
    observer = Recorder()
    with in_process():
        summary = experiment.run(settings, [observer])
    ((_, round_, client, reason),) = observer.arguments("client_failed")
    assert (round_, client) == (1, clients_by_class(settings)[RAISES])
    assert reason == "its code called sys.exit(3)"
    assert summary["federation"]["failures"] == 1


def _interrupt_in_round(last: int) -> Callable[..., None]:
    def at(_model: str, round_: int, *_: object) -> None:
        if round_ == last:
            raise KeyboardInterrupt

    return at


def test_a_training_that_diverges_is_told(tmp_path: Path) -> None:
    settings = tiny_config(
        tiny_data(tmp_path),
        tmp_path / "run",
        rounds=3,
        strategy="tests.federation.fakes.Overflowing",
    )
    with in_process():
        summary = experiment.run(settings)
    assert summary["federation"]["diverged_round"] == 2
    # From then on, the gradients of all clients are NaN.
    assert summary["federation"]["lost_rounds"] == [3]
    assert summary["federation"]["failures"] == 4
    assert summary["federation"]["accuracy"] is None or summary["federation"]["accuracy"] < 1
    assert summary["status"] == "complete"
    assert read_summary(RunFolder(Path(settings.output)).summary) == summary


def test_a_loss_that_is_not_finite_is_told(tmp_path: Path) -> None:
    settings = tiny_config(
        tiny_data(tmp_path), tmp_path / "run", path=f"{MODULES}.LossOfNan", model_args={}, rounds=2
    )
    with in_process():
        summary = experiment.run(settings)
    # It was so before the first round already.
    assert summary["federation"]["diverged_round"] == 0
    assert summary["federation"]["failures"] == 0
