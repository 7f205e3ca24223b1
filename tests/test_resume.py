"""Interrupted and repeated runs: nothing done twice, nothing lost, the same figures."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fedleak import experiment
from fedleak.config import RunConfig
from fedleak.results import RunFolder, read_rows
from fedleak.updates import InterceptedUpdate
from tests.federation.fakes import run_in_process, same_tensors
from tests.federation.runs import (
    Recorder,
    attack_plugin,
    interrupt,
    tiny_config,
    tiny_data,
    without_seconds,
)

PRECODE = {"width": 12, "precode": {"bottleneck_size": 4, "beta": 0.001}}


@pytest.fixture(autouse=True)
def _in_process(monkeypatch):
    monkeypatch.setattr("fedleak.federation.simulation.run_on_ray", run_in_process)


@pytest.fixture
def config(tmp_path):
    """Four clients, PRECODE, two attacks that take one update at a time."""
    attacks = tuple(attack_plugin(name, at_once=1) for name in ("iga", "nra"))
    return tiny_config(
        tiny_data(tmp_path), tmp_path / "run", model_args=PRECODE, attacks=attacks, batch_size=2
    )


def rows_of(config: RunConfig) -> list[dict[str, str]]:
    return without_seconds(read_rows(RunFolder(Path(config.output)).results))


def status_of(config: RunConfig) -> str:
    return json.loads(RunFolder(Path(config.output)).summary.read_text())["status"]


def elsewhere(config: RunConfig, name: str, **changes) -> RunConfig:
    return replace(config, output=str(Path(config.output).parent / name), **changes)


def test_the_same_configuration_gives_the_same_figures(config):
    again = elsewhere(config, "again")
    experiment.run(config)
    experiment.run(again)
    assert rows_of(config) == rows_of(again)
    other = elsewhere(config, "other", seed=1)
    experiment.run(other)
    assert rows_of(config) != rows_of(other)


@pytest.mark.parametrize("event", ["victim_attacked", "attack_started", "round_evaluated"])
def test_an_interrupted_run_is_finished_with_the_same_rows(event, config):
    whole = elsewhere(config, "whole")
    experiment.run(whole)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, [Recorder(event, interrupt)])
    assert status_of(config) == "interrupted"
    before = rows_of(config)
    assert len(before) < len(rows_of(whole))
    observer = Recorder()
    summary = experiment.run(config, [observer], resume=True)
    assert summary["status"] == status_of(config) == "complete"
    assert rows_of(config)[: len(before)] == before
    assert rows_of(config) == rows_of(whole)
    attacked = len(observer.arguments("victim_attacked"))
    assert attacked == (len(rows_of(whole)) - len(before)) / config.federation.batch_size
    if event != "round_evaluated":
        assert "federation_started" not in observer.names()


def test_a_complete_run_is_not_done_again(config):
    first = experiment.run(config)
    observer = Recorder()
    assert experiment.run(config, [observer], resume=True) == first
    assert not {"federation_started", "victim_attacked"} & set(observer.names())


@pytest.mark.parametrize("strategy", ["FedAvg", "FedAdam", "FedAvgM"])
def test_a_federation_is_resumed_where_it_stopped(strategy, config):
    three = {"rounds": 3, "protocol": "fedavg", "batch_size": 4, "strategy": strategy}
    data = Path(config.output).parent
    whole, broken = (
        tiny_config(data / "tiny.npz", data / name, **three) for name in ("whole", "broken")
    )
    experiment.run(whole)

    def after_round_1(_model, round_, _metrics):
        if round_ == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.run(broken, [Recorder("round_evaluated", after_round_1)])
    assert status_of(broken) == "interrupted"
    observer = Recorder()
    summary = experiment.run(broken, [observer], resume=True)
    ((_, _, first, rounds),) = observer.arguments("federation_started")
    assert (first, rounds) == (2, 3)
    expected = json.loads(RunFolder(Path(whole.output)).summary.read_text())
    assert summary["federation"] == expected["federation"]
    for client in range(4):
        name = f"r0003-c{client:04d}.safetensors"
        ours, theirs = (
            InterceptedUpdate.load(RunFolder(Path(part.output)).updates() / name)
            for part in (broken, whole)
        )
        assert same_tensors(ours.sent, theirs.sent)
        assert same_tensors(ours.received, theirs.received)


def test_attacks_in_the_round_find_what_attacks_afterwards_find(config):
    during = elsewhere(config, "during", victims=replace(config.victims, when="during"))
    experiment.run(config)
    experiment.run(during)
    key = ("attack", "round", "client", "sample")
    after, within = (
        sorted(rows_of(c), key=lambda r: [r[k] for k in key]) for c in (config, during)
    )
    assert after == within


def test_saved_updates_are_attacked_without_flower(config):
    experiment.run(config)
    command = (
        "import sys; sys.modules['flwr'] = sys.modules['ray'] = None\n"
        "from fedleak import cli\n"
        "cli.main(sys.argv[1:])"
    )
    run, out = Path(config.output), Path(config.output).parent / "single"
    source = run / "updates" / "r0001-c0002.safetensors"
    arguments = ["attack", str(source), "--attack", "nra", "--attack.iterations", "10",
                 "--labels", "recovered", "--output", str(out)]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = read_rows(RunFolder(out).results)
    assert {row["client"] for row in rows} == {2}
    assert {row["attack"] for row in rows} == {"nra"}
    assert (out / "updates" / "r0001-global.safetensors").is_file()
    # The source is left as it was.
    assert len(read_rows(RunFolder(run).results)) == 2 * 4 * 2


def test_an_update_of_unknown_origin_is_reconstructed_without_scores(config):
    experiment.run(config)
    for path in (Path(config.output) / "truth").iterdir():
        if path.is_file():
            path.unlink()
    blind = elsewhere(
        config, "blind", attacks=(attack_plugin("iga"),),
        victims=replace(config.victims, labels="recovered"),
    )  # fmt: skip
    summary = experiment.attack(Path(config.output), blind)
    (entry,) = summary["attacks"]
    assert entry["n"] == 8
    assert entry["ssim"] is None
    pictures = list((Path(blind.output) / "figures" / "victims").glob("*.png"))
    assert len(pictures) == 8


def test_an_own_strategy_by_dotted_path(config):
    federation = replace(config.federation, strategy="flwr.serverapp.strategy.FedMedian")
    median = elsewhere(config, "median", federation=federation, attacks=(attack_plugin("iga"),))
    assert experiment.run(median)["status"] == "complete"
