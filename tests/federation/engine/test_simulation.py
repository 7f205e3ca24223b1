"""Real simulations: Flower, Ray, Lightning in workers. Each takes seconds to start."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import load_file

from fedleak import experiment
from fedleak.build import make_data, make_model
from fedleak.config import Federation, RunConfig, Victims
from fedleak.errors import BadInput
from fedleak.federation import client_app, records, simulate
from fedleak.federation.engine.checkpoint import Outcome, restore
from fedleak.federation.engine.grid import OrderedGrid
from fedleak.federation.engine.server import Interception, ServerControl, make_strategy
from fedleak.federation.engine.simulation import run_on_ray
from fedleak.registry import Plugin
from fedleak.runs.folder import RunFolder
from fedleak.runs.observer import Observer
from fedleak.runs.results import read_rows
from fedleak.updates.files import Tensors, update_files
from tests.federation.fakes import run_in_process, same_tensors
from tests.federation.runs import (
    Recorder,
    attack_plugin,
    clients_by_class,
    in_process,
    nothing_left_running,
    tiny_config,
    tiny_data,
    without_seconds,
)
from tests.federation.user_models import IGNORES_SIGNALS, RAISES, SLEEPS

MODULES = "tests.federation.user_models"


def photos_config(output: Path, **federation: Any) -> RunConfig:
    """LeNet on the photographs, with a learning rate at which it converges."""
    settings = {"protocol": "fedavg", "batch_size": 32} | federation
    return RunConfig(
        data=Plugin("fedleak.data.photos.Photos"),
        model=Plugin("fedleak.models.lenet.LeNet", {"optimizer": "adam", "learning_rate": 0.003}),
        output=str(output),
        federation=Federation(**settings),
        victims=Victims(clients=[0], rounds=[1]),
    )


def malicious(config: RunConfig, observer: Observer) -> tuple[Tensors, Outcome]:
    """The final weights of fedleak's federation, and its outcome."""
    folder = RunFolder(Path(config.output))
    for path in (folder.updates(), folder.truth()):
        path.mkdir(parents=True)
    interception = Interception(
        folder=folder.updates(), attacks=(), knowledge=_unused, on_attacked=_unused,
        wanted=_unused,
    )  # fmt: skip
    data = make_data(config)
    outcome = simulate(
        config,
        data,
        model=make_model(config, data),
        strategy=make_strategy(config),
        interception=interception,
        truth=folder.truth(),
        checkpoint=folder.checkpoint(),
        observer=observer,
    )
    return restore(folder.checkpoint(), FedAvg()), outcome


def _unused(*_: object) -> Any:
    raise AssertionError("there is no attack")


def plain_flower(config: RunConfig, engine: Any) -> Tensors:
    """The final weights of Flower's own FedAvg, without a malicious strategy."""
    federation = config.federation
    found: list[ArrayRecord] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        ordered = OrderedGrid(
            grid, federation.clients, stop=threading.Event(), on_reply=lambda *_: None
        )
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=federation.clients)
        weights = make_model(config, make_data(config)).state_dict()
        result = strategy.start(
            ordered, records.to_record(weights), num_rounds=federation.rounds, timeout=300
        )
        found.append(result.arrays)

    engine(config, app, client_app(config), ServerControl())
    return records.to_tensors(found[0])


@contextmanager
def sigterm_handler_restored() -> Iterator[None]:
    """The handler of SIGTERM from before the block handles it again afterwards."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        yield
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_federation_learns_and_ends_as_plain_fedavg_does(tmp_path: Path) -> None:
    config = photos_config(tmp_path / "run", clients=4, rounds=3)
    observer = Recorder()
    with nothing_left_running(), sigterm_handler_restored():
        weights, outcome = malicious(config, observer)
    assert same_tensors(weights, plain_flower(config, run_in_process))
    accuracies = [m["test/accuracy"] for _, _, m in observer.arguments("round_evaluated")]
    assert len(accuracies) == 4
    assert accuracies[-1] > accuracies[0] + 0.1
    assert outcome.accuracy == accuracies[-1]
    assert (outcome.rounds, outcome.failures) == (3, 0)
    answers = observer.arguments("client_answered")
    assert sorted((round_, client) for _, round_, client, _ in answers) == [
        (round_, client) for round_ in (1, 2, 3) for client in range(4)
    ]

    # The stand-in for Ray that other tests use gives the same to the last bit.
    twin = photos_config(tmp_path / "twin", clients=4, rounds=3)
    other = Recorder()
    with in_process():
        again, _ = malicious(twin, other)
    assert same_tensors(weights, again)
    assert observer.arguments("round_evaluated") == other.arguments("round_evaluated")
    folders = [RunFolder(Path(c.output)) for c in (config, twin)]
    for kind in ("updates", "truth"):
        files = [update_files(getattr(folder, kind)()) for folder in folders]
        assert [path.name for path in files[0]] == ["r0001-c0000.safetensors"]
        assert same_tensors(load_file(files[0][0]), load_file(files[1][0]))


@pytest.mark.slow
def test_ten_clients_over_five_rounds_end_as_plain_flower_does(tmp_path: Path) -> None:
    config = photos_config(tmp_path / "run", clients=10, rounds=5)
    observer = Recorder()
    with nothing_left_running():
        weights, outcome = malicious(config, observer)
        assert same_tensors(weights, plain_flower(config, run_on_ray))
    accuracies = [m["test/accuracy"] for _, _, m in observer.arguments("round_evaluated")]
    assert accuracies[-1] == outcome.accuracy
    assert accuracies[-1] > accuracies[0] + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_the_same_seed_gives_the_same_figures_on_ray(protocol: str, tmp_path: Path) -> None:
    data = tiny_data(tmp_path)

    def rows(name: str) -> list[dict[str, str]]:
        config = tiny_config(
            data, tmp_path / name, rounds=2, protocol=protocol, batch_size=4, victim_clients=[1],
            model_args={"width": 12, "precode": {"bottleneck_size": 6}}, baseline=True,
            attacks=(attack_plugin("iga"), attack_plugin("nra")), client_evaluation=True,
        )  # fmt: skip
        experiment.run(config)
        return without_seconds(read_rows(RunFolder(Path(config.output)).results))

    with nothing_left_running():
        first = rows("first")
        assert first
        assert first == rows("second")


def test_clients_that_raise_or_never_answer_do_not_stop_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedleak.federation.engine.simulation.GRACE_SECONDS", 10.0)
    monkeypatch.setattr("fedleak.federation.engine.ray_engine.SHUTDOWN_SECONDS", 1.0)
    monkeypatch.setattr("fedleak.federation.engine.ray_engine.NOTICE_SECONDS", 1.0)
    config = tiny_config(
        tiny_data(tmp_path), tmp_path / "run", path=f"{MODULES}.FailingByClass", model_args={},
        partition="shards", shards_per_client=1, client_timeout=2.0, cpus_per_client=0.5,
        attacks=(attack_plugin("iga"),),
    )  # fmt: skip
    by_class = clients_by_class(config)
    observer = Recorder()
    before = os.environ.get("PYTHONPATH")
    with nothing_left_running():
        summary = experiment.run(config, [observer])
    assert summary["status"] == "complete"
    assert summary["federation"] == {
        "rounds": 1, "clients": 4, "failures": 3, "accuracy": None, "lost_rounds": [1],
        "diverged_round": None,
    }  # fmt: skip
    reasons = {client: reason for _, _, client, reason in observer.arguments("client_failed")}
    assert reasons == {
        by_class[RAISES]: "the camera is broken",
        by_class[SLEEPS]: "the client did not finish within 2 s",
        by_class[IGNORES_SIGNALS]: "it did not answer in time",
    }
    (attacked,) = observer.arguments("victim_attacked")
    assert attacked[2].client == by_class[3]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert os.environ.get("PYTHONPATH") == before


@pytest.mark.parametrize(
    ("how", "reason", "protocol"),
    [
        pytest.param("segfault", "its worker process died", "fedsgd"),
        pytest.param("sys.exit", "its code called sys.exit(3)", "fedavg", marks=pytest.mark.slow),
        pytest.param("os._exit", "its worker process died", "fedavg", marks=pytest.mark.slow),
    ],
)
def test_a_client_whose_process_dies_costs_itself_alone(
    how: str, reason: str, protocol: str, tmp_path: Path
) -> None:
    config = tiny_config(
        tiny_data(tmp_path), tmp_path / "run", path=f"{MODULES}.DyingByClass",
        model_args={"how": how}, partition="shards", shards_per_client=1, rounds=2,
        protocol=protocol,
    )  # fmt: skip
    client = clients_by_class(config)[RAISES]
    observer = Recorder()
    with nothing_left_running():
        summary = experiment.run(config, [observer])
    failed = [(round_, c, why) for _, round_, c, why in observer.arguments("client_failed")]
    assert failed == [(round_, client, reason) for round_ in (1, 2)]
    assert summary["federation"]["failures"] == 2
    assert summary["federation"]["lost_rounds"] == [1, 2]
    kept = [path.stem for path in update_files(RunFolder(Path(config.output)).updates())]
    assert kept == [f"r{r:04d}-c{c:04d}" for r in (1, 2) for c in range(4) if c != client]


@pytest.mark.parametrize(
    ("federation", "sentence"),
    [
        ({"gpus_per_client": 100}, r"Expected `federation.gpus_per_client` to be at most the num"),
        ({"ray_address": "127.0.0.1:1"}, r"Expected a Ray cluster at .* 127.0.0.1:1, found none"),
        ({"ray_address": "ray://127.0.0.1:99999"}, r"Expected a Ray cluster at .*, found none"),
    ],
)
def test_an_engine_that_cannot_run_a_client_is_refused(
    federation: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    config = tiny_config(tiny_data(tmp_path), tmp_path / "run", **federation)
    with pytest.raises(BadInput, match=sentence):
        experiment.run(config)
    assert not (tmp_path / "run").exists()
