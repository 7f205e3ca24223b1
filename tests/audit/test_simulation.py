"""Whole runs of apps: on Flower's own engine, and without it."""

import json
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.config import get_fused_config_from_dir
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.server.client_manager import SimpleClientManager
from flwr.serverapp import Grid, ServerApp
from flwr.simulation.run_simulation import _run_simulation
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.telemetry import EventType

from fedleak.audit.app import FlowerApp, read_app
from fedleak.audit.simulation import run_app, server_models, with_rounds
from fedleak.errors import BadInput
from fedleak.federation.engine.ray_engine import FederationError, Resources
from fedleak.federation.engine.server import ServerControl
from fedleak.federation.strategy import Stopped
from fedleak.updates.update import InterceptedUpdate
from tests.audit.apps import TABLE, TEXT, imports_undone, in_process, write_app, write_kind
from tests.federation.fakes import FakeGrid, same_tensors
from tests.federation.runs import nothing_left_running


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with imports_undone():
        yield


def saving(app: FlowerApp, path: Path) -> FlowerApp:
    """The app, which writes the final weights to a file."""
    return read_app(app.folder, [f"save='{path}'"])


def test_an_app_ends_as_without_the_audit(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "images")
    alone, audited = tmp_path / "alone.pt", tmp_path / "audited.pt"
    random.seed(3)  # strategies sample by it
    plain(saving(app, alone), in_process, clients=3)
    random.seed(3)
    found = run_app(saving(app, audited), tmp_path / "audit", clients=3, engine=in_process)
    assert same_tensors(torch.load(alone), torch.load(audited))
    assert [p.stem for p in found.updates] == [
        f"r{r:04d}-c{c:04d}" for r in (1, 2) for c in range(3)
    ]
    names = {folder.name for folder in found.folder.iterdir()}
    assert names == {"updates", "facts", "truth", "nodes", "replies.jsonl"}
    for path in found.updates:
        assert found.facts(path.stem).steps == 2
        assert found.truth(path.stem).is_file()
    lines = [json.loads(line) for line in (found.folder / "replies.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all(line["metrics"]["train_loss"] > 0 and line["examples"] == 6 for line in lines)


def plain(app: FlowerApp, engine: Any, *, clients: int) -> None:
    """The app's own ServerApp and ClientApp, without the audit."""

    class Client(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            context.run_config = dict(app.run_config)
            return app.client_app()(message, context)

    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        context.run_config = dict(app.run_config)
        app.server_app()(grid, context)

    engine(Resources(clients), server, Client(), ServerControl())


def flower_alone(app: FlowerApp, overrides: dict[str, Any], clients: int) -> None:
    """The app as ``flwr run`` runs it, on Flower's own engine."""
    config = get_fused_config_from_dir(app.folder, overrides)
    run = Run.create_empty(run_id=7)
    run.primary_task_id, run.federation_id, run.override_config = 8, NOOP_FEDERATION_ID, overrides
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, SUPERLINK_NODE_ID
    try:
        _run_simulation(
            num_supernodes=clients,
            exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
            client_app_attr=app.client,
            server_app_attr=app.server,
            server_app_context=Context(7, 0, {}, RecordDict(), config),
            app_dir=str(app.folder),
            run=run,
            is_app=True,
        )
    finally:
        ray.shutdown()


def test_an_app_on_ray_ends_as_without_the_audit(tmp_path: Path) -> None:
    """Two clients: the sum of their weights does not depend on which one answers first."""
    app = write_kind(tmp_path / "app", "images")
    alone, audited = tmp_path / "alone.pt", tmp_path / "audited.pt"
    with nothing_left_running():
        found = run_app(saving(app, audited), tmp_path / "audit", clients=2)
    plain(saving(app, alone), in_process, clients=2)
    assert same_tensors(torch.load(alone), torch.load(audited))
    assert found.failures == []
    assert [path.stem for path in found.updates] == [
        "r0001-c0000", "r0001-c0001", "r0002-c0000", "r0002-c0001",
    ]  # fmt: skip
    # The clients ran in other processes: only the server's model was seen in this one.
    assert [type(model).__name__ for model in found.models] == ["Net"]
    facts = found.facts("r0002-c0001")
    assert (facts.partition, facts.batch_sizes, facts.faults) == (1, (4, 2), ())


@pytest.mark.slow
def test_an_app_ends_as_flower_alone(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "images")
    alone, audited = tmp_path / "alone.pt", tmp_path / "audited.pt"
    with nothing_left_running():
        run_app(saving(app, audited), tmp_path / "audit", clients=2)
        flower_alone(app, {"save": str(alone)}, 2)
    assert same_tensors(torch.load(alone), torch.load(audited))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lightning", "old"])
def test_other_apps_on_ray(kind: str, tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", kind)
    with nothing_left_running():
        found = run_app(app, tmp_path / "audit", clients=2, rounds=1)
    assert [path.stem for path in found.updates] == ["r0001-c0000", "r0001-c0001"]
    for path in found.updates:
        facts = found.facts(path.stem)
        assert facts.model is not None
        assert (facts.model.lightning, facts.model.called) == (kind == "lightning", "itself")
        assert facts.faults == ()


LOOP = """
import time
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
from {name}.task import make

app = ServerApp()

@app.main()
def main(grid, context):
    weights = make().state_dict()
    nodes = sorted(grid.get_node_ids())
    for _ in range(context.run_config["num-server-rounds"]):
        config = ConfigRecord({{"lr": 0.1}})
        content = RecordDict({{"arrays": ArrayRecord(weights), "config": config}})
        waiting = set(grid.push_messages(Message(content, node, "train") for node in nodes))
        replies = []
        while waiting:
            for reply in grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply.content["arrays"].to_torch_state_dict())
            time.sleep(0.01)
        weights = {{k: sum(r[k] for r in replies) / len(replies) for k in weights}}
"""
IDLE = """
from flwr.clientapp import ClientApp
app = ClientApp()
"""
RAISES = """
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    raise KeyError("weights.pt")
"""


def test_what_fails_is_said(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "table")
    for options, sentence in (
        ({"clients": 0}, "Expected at least 1 client, got 0"),
        ({"clients": 1, "rounds": 0}, "Expected at least 1 round, got 0"),
        ({"clients": 1, "gpus_per_client": 99}, "Expected `gpus_per_client` to be at most"),
    ):
        with pytest.raises(BadInput, match=sentence):
            run_app(app, tmp_path / "audit", engine=in_process, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "audit").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "replies.jsonl").write_text("")
    with pytest.raises(BadInput, match="Expected a folder without an app's run at"):
        run_app(app, tmp_path / "full", clients=1, engine=in_process)
    assert with_rounds(app, 7).run_config["num-server-rounds"] == 7
    config = FlowerApp(app.folder, app.server, app.client, {"epochs": 1})
    with pytest.raises(BadInput, match=r"such as `num-server-rounds`, got epochs: leave the"):
        with_rounds(config, 2)
    broken = read_app(write_app(tmp_path / "b", "app_broken", server_app=RAISES, client_app=IDLE))
    with pytest.raises(FederationError, match=r"The app's ServerApp failed: 'weights.pt'"):
        run_app(broken, tmp_path / "broken", clients=1, engine=in_process)


def test_a_server_loop_without_a_strategy(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "table")
    package = app.client.partition(".")[0]
    (app.folder / package / "server_app.py").write_text(LOOP.format(name=package))
    del sys.modules[f"{package}.server_app"]
    found = run_app(app, tmp_path / "audit", clients=2, engine=in_process)
    assert [p.stem for p in found.updates] == [f"r{r:04d}-c{c:04d}" for r in (1, 2) for c in (0, 1)]
    first, second, third, _ = (found.update(path) for path in found.updates)
    for name, value in third.sent.items():
        torch.testing.assert_close(value, (first.received[name] + second.received[name]) / 2)
    assert {found.facts(path.stem).steps for path in found.updates} == {6}


def test_a_client_that_fails_and_an_update_that_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TEXT.replace("def data(number):", "def data(number):\n    assert number != 2, 'no data'")
    app = write_kind(tmp_path / "app", "text", task=task)
    saved = InterceptedUpdate.save

    def full(self: InterceptedUpdate, *args: Any, **kwargs: Any) -> Path:
        if self.client == 1:
            raise OSError("no space left")
        return saved(self, *args, **kwargs)

    monkeypatch.setattr(InterceptedUpdate, "save", full)
    found = run_app(app, tmp_path / "audit", clients=3, rounds=1, engine=in_process)
    assert [path.stem for path in found.updates] == ["r0001-c0000"]
    assert found.failures == [
        "1 of 3 trainings failed (client 2 in round 1): no data", "no space left"
    ]  # fmt: skip
    assert [path.stem for path in (found.folder / "truth").iterdir()] == ["r0001-c0000"]
    lines = [json.loads(line) for line in (found.folder / "replies.jsonl").read_text().splitlines()]
    reasons = {line["client"]: line["reason"] for line in lines}
    assert reasons == {0: None, 1: "it could not be kept: no space left", 2: "no data"}


def test_errors_that_flower_only_logs_are_told(tmp_path: Path) -> None:
    """As those of its workflow of secure aggregation, which ends a round without an update."""
    app = write_kind(tmp_path / "app", "table")
    package = app.client.partition(".")[0]
    text = (app.folder / package / "server_app.py").read_text()
    logs = "from flwr.common.logger import log; log(40, 'Not enough shares of %s', 'client 1')"
    text = text.replace("    start = Array", f"    {logs}\n    start = Array")
    (app.folder / package / "server_app.py").write_text(text)
    del sys.modules[f"{package}.server_app"]
    found = run_app(app, tmp_path / "audit", clients=2, rounds=1, engine=in_process)
    assert found.failures == ["Flower logged: Not enough shares of client 1"]
    assert len(found.updates) == 2


def test_a_server_that_fails_of_its_clients_failures(tmp_path: Path) -> None:
    task = TABLE.replace("def data(number):", "def data(number):\n    raise ValueError('boom')")
    app = write_kind(tmp_path / "app", "table", task=task)
    package = app.client.partition(".")[0]
    (app.folder / package / "server_app.py").write_text(LOOP.format(name=package))
    del sys.modules[f"{package}.server_app"]
    with pytest.raises(
        FederationError, match=r"ServerApp failed: .*\. Before, 2 of 2 trainings failed .*: boom\."
    ):
        run_app(app, tmp_path / "audit", clients=2, engine=in_process)


MORE_NODES = "min_train_nodes=1, min_available_nodes=1"


@pytest.mark.parametrize("kind", ["images", "old"])
def test_an_app_that_waits_for_more_clients_is_ended(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = write_kind(tmp_path / "app", kind)
    package = app.client.partition(".")[0]
    path = app.folder / package / "server_app.py"
    text = path.read_text()
    for fewer in (MORE_NODES, ", min_available_clients=1, min_fit_clients=1"):
        text = text.replace(fewer, "")
    path.write_text(text)
    sys.modules.pop(f"{package}.server_app", None)
    monkeypatch.setattr("fedleak.audit.listening_grid.WAITING_SECONDS", 0.5)
    monkeypatch.setattr("fedleak.audit.listening_grid.ASK_SECONDS", 0.1)
    before = SimpleClientManager.wait_for
    with pytest.raises(FederationError, match=r"app waits for, got 1: all of them are.*--cli"):
        run_app(app, tmp_path / "audit", clients=1, rounds=1, engine=in_process)
    assert SimpleClientManager.wait_for is before


def test_an_app_begins_when_all_nodes_are_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(FakeGrid):
        looks = 0

        def get_node_ids(self) -> Iterable[int]:
            Late.looks += 1
            return self.nodes[: Late.looks]

    monkeypatch.setattr("tests.audit.apps.FakeGrid", Late)
    found = run_app(
        write_kind(tmp_path / "app", "table"), tmp_path / "audit", clients=4, rounds=1,
        engine=in_process,
    )  # fmt: skip
    assert len(found.updates) == 4
    assert found.failures == []
    monkeypatch.setattr("fedleak.audit.listening_grid.CONNECT_SECONDS", 0.0)

    class Short(FakeGrid):
        def get_node_ids(self) -> Iterable[int]:
            return self.nodes[:3]

    monkeypatch.setattr("tests.audit.apps.FakeGrid", Short)
    found = run_app(
        write_kind(tmp_path / "other", "table"), tmp_path / "short", clients=4, rounds=1,
        engine=in_process,
    )  # fmt: skip
    assert found.failures == ["3 of 4 clients were connected when the app began"]


def test_an_interrupt_ends_the_server_and_leaves_readable_files(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "text")

    def engine(
        resources: Resources, server: ServerApp, client: ClientApp, control: ServerControl
    ) -> None:
        class Stopping(ClientApp):
            def __call__(self, message: Message, context: Context) -> Message:
                reply = client(message, context)
                if (tmp_path / "audit" / "updates").exists() and message.content["config"][
                    "server-round"
                ] == 2:
                    control.stop.set()  # as an engine does that is interrupted
                return reply

        with pytest.raises(Stopped):
            in_process(resources, server, Stopping(), control)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_app(app, tmp_path / "audit", clients=2, rounds=5, engine=engine)
    files = sorted((tmp_path / "audit" / "updates").glob("r*-c*.safetensors"))
    assert [path.stem for path in files] == ["r0001-c0000", "r0001-c0001"]
    for folder in ("facts", "truth"):
        found = sorted(path.stem for path in (tmp_path / "audit" / folder).iterdir())
        assert found == ["r0001-c0000", "r0001-c0001"]


@pytest.mark.parametrize("kind", ["images", "table", "lightning"])
def test_the_model_of_a_server_that_is_started_again(kind: str, tmp_path: Path) -> None:
    """It is the one that the whole run shows; no client is asked."""
    app = write_kind(tmp_path / "app", kind)
    observed = run_app(app, tmp_path / "out", clients=1, rounds=1, engine=in_process)
    (found,) = server_models(app)
    assert repr(found) == repr(observed.models[0])


def test_a_server_that_fails_or_has_no_model(tmp_path: Path) -> None:
    assert server_models(write_kind(tmp_path / "old", "old")) == []
    broken = "def make():\n    raise RuntimeError('no GPU here')\n\ndata = train = None\n"
    assert server_models(write_kind(tmp_path / "broken", "images", task=broken)) == []
