"""A federation under a malicious server trains as plain Flower does."""

import threading
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedleak import experiment
from fedleak.build import make_data, make_model
from fedleak.config import Federation, RunConfig, Victims
from fedleak.federation import client_app, records
from fedleak.federation.engine.client import evaluate_model
from fedleak.federation.engine.grid import OrderedGrid
from fedleak.registry import Plugin
from tests.federation.fakes import run_in_process
from tests.federation.runs import Recorder, in_process, tiny_config, tiny_data


def lenet_on_photos(output: Path, clients: int, rounds: int) -> RunConfig:
    model = {"optimizer": "adam", "learning_rate": 0.003}
    return RunConfig(
        data=Plugin("fedleak.data.photos.Photos"),
        model=Plugin("fedleak.models.lenet.LeNet", model),
        output=str(output),
        federation=Federation(clients=clients, rounds=rounds, protocol="fedavg", batch_size=8),
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
    config = lenet_on_photos(tmp_path / "run", 10, 2)
    observer = Recorder()
    summary = experiment.run(config, [observer])
    ours = {round_: metrics for _, round_, metrics in observer.arguments("round_evaluated")}
    # To the last bit: the same weights give the same loss.
    assert ours == plain_flower(config)
    assert list(ours) == [0, 1, 2]
    assert ours[0]["test/accuracy"] == pytest.approx(1 / 8, abs=0.03)
    assert summary["federation"]["accuracy"] == ours[2]["test/accuracy"]


def test_the_server_evaluates_every_so_many_rounds_and_after_the_last(tmp_path: Path) -> None:
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
