"""A run inside a Flower app, on the grid that Flower gives to its ServerApp."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message, MessageType
from flwr.common.constant import SUPERLINK_NODE_ID
from safetensors.torch import load_file

from fedleak import experiment
from fedleak.errors import BadInput, RunFailed
from fedleak.federation import AppFederation, is_simulation, read_run_config
from fedleak.reporting import write_report
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import read_rows
from tests.federation.app_runs import deployed_grid, simulated_grid, tiny_settings
from tests.federation.fakes import FakeGrid, same_tensors
from tests.federation.runs import Recorder, in_process, without_seconds

MEASURES = ("mse", "psnr", "ssim", "success")


@pytest.fixture(autouse=True)
def _on_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated clients are in this process, which counts as a worker of Ray."""
    monkeypatch.setattr("fedleak.federation.engine.app_client._runs_on_ray", lambda: True)


def run_app(settings: dict[str, Any], grid: FakeGrid, **flags: bool) -> tuple[Any, Recorder]:
    events = Recorder()
    summary = experiment.run(
        read_run_config(settings), [events], federate=AppFederation(grid),
        scored=is_simulation(grid), **flags,
    )  # fmt: skip
    return summary, events


def test_the_grid_tells_a_simulation(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    assert is_simulation(simulated_grid(settings))
    assert not is_simulation(deployed_grid(settings))


def test_a_simulated_app_gives_the_run_of_fedleak_run(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    run_app(settings, simulated_grid(settings))
    config = replace(read_run_config(settings), output=str(tmp_path / "own"))
    with in_process():
        experiment.run(config)
    app, own = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "own")
    assert files(app) == files(own)
    assert without_seconds(read_rows(app.results)) == without_seconds(read_rows(own.results))
    for name in ("updates/r0002-c0003.safetensors", "truth/r0002-c0003.safetensors"):
        assert same_tensors(load_file(app.path / name), load_file(own.path / name))
    # Eight samples, all of them scored against the truth.
    successes = [row["success"] for row in read_rows(app.results)]
    assert (len(successes), None in successes, sum(successes) >= 6) == (8, False, True)


def files(folder: RunFolder) -> set[str]:
    return {str(path.relative_to(folder.path)) for path in folder.path.rglob("*")}


def test_a_deployment_has_no_truth_and_no_scores(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    summary, _ = run_app(settings, deployed_grid(settings))
    folder = RunFolder(tmp_path / "run")
    assert not folder.truth().exists()
    rows = read_rows(folder.results)
    assert len(rows) == 8
    assert all(row["explained"] > 0.99 for row in rows)
    assert all(row[name] is None for row in rows for name in MEASURES)
    assert summary["federation"]["failures"] == 0
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Reconstructions without a score: 8 by rgap on smlp; the ground truth is not" in page
    assert "explain 100 % of the updates on average" in page


def test_known_labels_are_refused_in_a_deployment(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, labels="known")
    with pytest.raises(BadInput, match=r"Expected labels that are recovered.*got known"):
        run_app(settings, deployed_grid(settings))
    assert not (tmp_path / "run").exists()


def test_a_node_that_is_gone_in_a_round_takes_part_in_the_next(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    grid = deployed_grid(settings)
    answer, asked = grid._answer, []

    def once_gone(question: Message) -> Message:
        asked.append(question.metadata.message_type)
        reply = answer(question)
        if asked.count(MessageType.TRAIN) == 2 and asked[-1] == MessageType.TRAIN:
            # As Flower's SuperLink answers for it.
            error = Message(Error(14, "Node unavailable"), reply_to=question)
            error.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
            return error
        return reply

    grid._answer = once_gone
    summary, events = run_app(settings, grid)
    assert summary["status"] == "complete"
    assert (summary["federation"]["failures"], summary["federation"]["lost_rounds"]) == (1, [1])
    ((_, round_, client, reason),) = events.arguments("client_failed")
    assert (round_, reason) == (1, "Node unavailable")
    rows = read_rows(RunFolder(tmp_path / "run").results)
    assert {(row["round"], row["client"]) for row in rows} == {
        (r, c) for r in (1, 2) for c in range(4)
    } - {(1, client)}


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([0, 1, 2, 2], "expected nodes with `partition-id` from 0 to 3.*got 2 twice"),
        ([0, 1, 2, 7], "expected nodes with `partition-id` from 0 to 3.*got 7"),
        ([0, 1, 2, None], "only 3 of 4 clients are ready: Expected `partition-id` in a node's"),
    ],
)
def test_every_node_needs_a_number_of_its_own(
    nodes: list[int | None], message: str, tmp_path: Path
) -> None:
    settings = tiny_settings(tmp_path)
    own = [{} if number is None else {"partition-id": number} for number in nodes]
    with pytest.raises(RunFailed, match=message):
        run_app(settings, deployed_grid(settings, *own))


def test_mods_are_refused_in_a_simulation(tmp_path: Path) -> None:
    mods = "[{class_path: flwr.clientapp.mod.LocalDpMod, init_args: {clipping_norm: 1.0, "
    mods += "sensitivity: 1.0, epsilon: 10.0, delta: 0.1}}]"
    settings = tiny_settings(tmp_path, protocol="fedavg", federation__mods=mods)
    with pytest.raises(BadInput, match=r"Expected no `federation.mods` in a simulated Flower app"):
        run_app(settings, simulated_grid(settings))


def test_an_interrupted_run_is_resumed(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    grid = simulated_grid(settings)
    interrupted = Recorder("round_evaluated", stop_after_first_round)
    config, federate = read_run_config(settings), AppFederation(grid)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, [interrupted], federate=federate)
    _, events = run_app(settings, grid, resume=True)
    assert events.arguments("federation_started") == [("smlp", 4, 2, 2)]
    assert len(read_rows(RunFolder(tmp_path / "run").results)) == 8


def stop_after_first_round(model: str, round_: int, metrics: object) -> None:
    if round_ == 1:
        raise KeyboardInterrupt


def test_the_clients_of_a_large_deployment_are_its_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a simulation of so many clients would have fewer nodes."""
    monkeypatch.setattr("fedleak.federation.engine.server.num_supernodes", lambda config: 1)
    settings = tiny_settings(tmp_path, rounds=1)
    grid = deployed_grid(settings)
    run_app(settings, grid)
    asked = [m for m in grid.pushed if m.metadata.message_type == MessageType.TRAIN]
    assert {message.metadata.dst_node_id for message in asked} == set(grid.nodes)
    assert len(read_rows(RunFolder(tmp_path / "run").results)) == 4


def test_a_round_waits_for_every_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower counts the nodes before it waits for them, and would ask as many as there were."""
    monkeypatch.setattr("fedleak.federation.engine.app_server.NETWORK_POLL_SECONDS", 0.1)
    settings = tiny_settings(tmp_path)
    grid = deployed_grid(settings)
    late, looks = grid.nodes[2], []

    def present() -> list[int]:
        asked = [m for m in grid.pushed if m.metadata.message_type == MessageType.TRAIN]
        if len(asked) == 4:  # the second round begins
            looks.append(late)
        return [node for node in grid.nodes if node != late or not 0 < len(looks) < 3]

    monkeypatch.setattr(grid, "get_node_ids", present)
    summary, _ = run_app(settings, grid)
    assert len(looks) >= 3
    assert summary["federation"]["failures"] == 0
    assert len(read_rows(RunFolder(tmp_path / "run").results)) == 8
