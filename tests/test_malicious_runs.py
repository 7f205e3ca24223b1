"""Runs with a malicious server, in this process: files, results, resuming, the honest rest."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedleak import experiment
from fedleak.build import make_data, public_samples
from fedleak.config import RunConfig
from fedleak.errors import BadInput
from fedleak.federation.engine import server as engine
from fedleak.models.classifier import ImageClassifier
from fedleak.registry import Plugin
from fedleak.reporting import write_report
from fedleak.reporting.tables import results_table
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import read_rows
from fedleak.runs.summary import read_summary
from fedleak.servers.files import load_crafted, load_reading
from fedleak.updates.files import Tensors, update_files
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate
from tests.federation.fakes import same_tensors
from tests.federation.runs import (
    Recorder,
    attack_plugin,
    in_process,
    interrupt,
    tiny_config,
    tiny_data,
    without_seconds,
)


class SmallConv(ImageClassifier):
    """A convolution and three linear layers, as ``bins`` needs them."""

    def __init__(self, *, input_shape: tuple[int, ...], num_classes: int) -> None:
        body = nn.Sequential(
            nn.Conv2d(input_shape[0], 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(96, 40), nn.ReLU(), nn.Linear(40, 12), nn.ReLU(),
        )  # fmt: skip
        super().__init__(
            body, 12, input_shape=input_shape, num_classes=num_classes, precode=None,
            optimizer="sgd", learning_rate=0.1,
        )  # fmt: skip


TOYS = "tests.servers.toy_servers"
ANALYTIC = Plugin("fedleak.attacks.analytic.Analytic")


def config_of(
    tmp_path: Path, output: str = "run", toy: str = "FirstLayer", **changes: Any
) -> RunConfig:
    settings = changes.pop("settings", {})
    data = tmp_path / "tiny.npz"
    server = changes.pop("server", Plugin(f"{TOYS}.{toy}", settings))
    return tiny_config(
        data if data.exists() else tiny_data(tmp_path), tmp_path / output, server=server,
        **{"batch_size": 1, "rounds": 2, "victim_clients": [0, 2]} | changes,
    )  # fmt: skip


def run(config: RunConfig, **options: Any) -> tuple[dict[str, Any], RunFolder]:
    with in_process():
        return experiment.run(config, **options), RunFolder(Path(config.output))


def keys(folder: Path) -> list[str]:
    return [path.stem for path in update_files(folder)]


def test_files_rows_and_summary_of_a_run(tmp_path: Path) -> None:
    config = config_of(tmp_path, settings={"features": True, "rounds": 2}, attacks=(ANALYTIC,))
    events = Recorder()
    summary, folder = run(config, observers=[events])
    four = [f"r000{r}-c000{c}" for r in (1, 2) for c in (0, 2)]
    assert keys(folder.sent()) == keys(folder.updates()) == keys(folder.truth()) == four
    found = keys(folder.readings())
    assert set(found) <= {"r0002-c0000", "r0002-c0002"}
    assert "r0002-c0000" in found
    model = experiment.prepare(config).models[""].state_dict()
    sent = load_crafted(folder.sent() / "r0001-c0000.safetensors")
    assert same_tensors(dict(sent.weights), {n: 0.5 * value for n, value in model.items()})
    assert load_file(folder.updates() / "r0001-c0000-sent.safetensors").keys() == model.keys()
    rows = [row for row in read_rows(folder.results) if row["attack"] == "first_layer"]
    reading = load_reading(folder.readings() / "r0002-c0000.safetensors")
    truth = GroundTruth.load(folder.truth() / "r0002-c0000.safetensors")
    assert len(reading.inputs) == 2
    own = [row for row in rows if row["client"] == 0]
    assert [(row["round"], row["batch_size"]) for row in own] == [(2, 1)]
    # The truth is that of the last round, which has one sample: the other found one has none.
    assert own[0]["ssim"] == pytest.approx(1)
    assert own[0]["feature_cosine"] == pytest.approx(1)
    assert torch.allclose(reading.inputs[1], truth.inputs[0], atol=1e-4)
    passive = [row for row in read_rows(folder.results) if row["attack"] == "analytic"]
    assert len(passive) == 4
    assert all(row["certified"] is None for row in passive)
    entry = summary["server"]["readings"][0]
    assert (entry["client"], entry["rounds"], entry["found"], entry["samples"]) == (0, [1, 2], 2, 1)
    assert summary["server"]["sent"] == 4
    assert summary == read_summary(folder.summary)
    assert len(events.arguments("victim_attacked")) == 4 + len(found)
    page = write_report(folder, trust=True).read_text()
    assert "it changed 4 messages, of which 4 were answered" in page
    assert "malicious server that chooses parameters" in page
    assert f"it read 2 of {entry['samples']} samples" in page
    assert "The server read" in str(results_table(summary, config).caption)


def weights_by_round(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> list[Tensors]:
    """The global weights after each round."""
    found = []
    original = engine.write_checkpoint

    def note(path: Path, weights: Tensors, *rest: Any) -> None:
        found.append({name: value.clone() for name, value in weights.items()})
        original(path, weights, *rest)

    monkeypatch.setattr(engine, "write_checkpoint", note)
    run(config)
    monkeypatch.undo()
    return found


@pytest.mark.parametrize("protocol", [pytest.param("fedsgd", marks=pytest.mark.slow), "fedavg"])
def test_honest_rounds_are_bit_identical(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the server absent, and with one that attacks in round 3 alone."""
    shared = {"protocol": protocol, "rounds": 3, "batch_size": 4, "victim_rounds": [3]}
    honest = weights_by_round(config_of(tmp_path, "a", server=None, **shared), monkeypatch)
    attacked = weights_by_round(config_of(tmp_path, "b", **shared), monkeypatch)
    assert all(same_tensors(*pair) for pair in zip(honest[:2], attacked[:2], strict=True))
    assert not same_tensors(honest[2], attacked[2])


def test_the_others_train_on_as_if_the_victims_were_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of the three honest clients' weights, weighted by their numbers of samples."""
    shared = {"protocol": "fedavg", "rounds": 1, "batch_size": 4}
    config = config_of(tmp_path, "a", **shared, victim_clients=[1])
    (attacked,) = weights_by_round(config, monkeypatch)
    everybody = config_of(tmp_path, "b", server=None, **shared, victim_clients=None)
    _, folder = run(everybody)
    honest = [
        load_file(path) for path in update_files(folder.updates()) if "c0001" not in path.stem
    ]
    assert len(honest) == 3
    for name, value in attacked.items():
        mean = torch.stack([tensors[name].double() for tensors in honest]).mean(dim=0)
        torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)


def test_a_server_that_attacks_everybody_leaves_the_model_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, victim_clients=None)
    first, second = weights_by_round(config, monkeypatch)
    model = experiment.prepare(config).models[""].state_dict()
    assert same_tensors(first, dict(model))
    assert same_tensors(second, dict(model))


@pytest.mark.parametrize(
    "at", [pytest.param("round_evaluated", marks=pytest.mark.slow), "victim_attacked"]
)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(at: str, tmp_path: Path) -> None:
    shared = {"settings": {"rounds": 2}, "rounds": 4, "batch_size": 2}
    whole, folder = run(config_of(tmp_path, "whole", **shared))
    config, calls = config_of(tmp_path, "broken", **shared), []

    def once(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == (4 if at == "round_evaluated" else 2):
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        run(config, observers=[Recorder(at, once)])
    resumed, other = run(config, resume=True)
    assert without_seconds(read_rows(other.results)) == without_seconds(read_rows(folder.results))
    for part in ("sent", "updates", "readings"):
        assert keys(getattr(other, part)()) == keys(getattr(folder, part)())
    for path in update_files(folder.sent()):
        assert same_tensors(load_file(path), load_file(other.sent() / path.name))
    for summary in (whole, resumed):
        for entry in summary["server"]["readings"]:
            del entry["seconds"]
    assert resumed["server"] == whole["server"]


def test_a_reading_of_nothing_and_one_that_fails(tmp_path: Path) -> None:
    events = Recorder()
    summary, folder = run(config_of(tmp_path, toy="Nothing"), observers=[events])
    assert [entry["found"] for entry in summary["server"]["readings"]] == [0] * 4
    assert not folder.results.exists()
    assert summary["status"] == "complete"
    write_report(folder, trust=True)


def test_saved_updates_are_attacked_with_the_weights_that_were_sent(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    _, folder = run(config)
    again = config_of(tmp_path, "again", attacks=(ANALYTIC,))
    summary = experiment.attack_run(folder.path, again, trust=True)
    assert summary["status"] == "complete"
    rows = read_rows(RunFolder(Path(again.output)).results)
    assert {(row["round"], row["client"]) for row in rows} == {(1, 0), (1, 2), (2, 0), (2, 2)}
    assert max(row["ssim"] for row in rows) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"settings": {"rounds": 3}}, "Expected at least 3 rounds in which first_layer attacks"),
        ({"victim_rounds": [2], "settings": {"rounds": 2}}, "Expected at least 2 rounds"),
        ({"settings": {"rate": 0.1}}, "they ignore `lr`: name them in `federation.obeys`"),
        ({"server": Plugin("fedleak.attacks.iga.IGA")}, "to name a subclass of MaliciousServer"),
    ],
)
def test_refusals(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=text):
        run(config_of(tmp_path, **changes))


@pytest.mark.parametrize(("number", "expected"), [(None, 16), (5, 5), (99, 16), (0, None)])
def test_public_samples_are_the_first_test_samples(
    number: int | None, expected: int | None, tmp_path: Path
) -> None:
    config = config_of(tmp_path, public=number)
    data = make_data(config)
    found = public_samples(config, data)
    assert (None if found is None else len(found)) == expected
    if found is not None:
        assert torch.equal(found[-1], data.test_set[len(found) - 1][0])


def test_a_damaged_summary_of_a_server_is_refused(tmp_path: Path) -> None:
    _, folder = run(config_of(tmp_path, rounds=1))
    summary = json.loads(folder.summary.read_text())
    summary["server"]["readings"][0]["found"] = -1
    folder.summary.write_text(json.dumps(summary))
    with pytest.raises(BadInput, match="Expected `server` to hold threat_model, sent, answered"):
        read_summary(folder.summary)


@pytest.mark.parametrize("protocol", ["fedsgd", pytest.param("fedavg", marks=pytest.mark.slow)])
def test_victims_that_are_seen_as_their_mean(protocol: str, tmp_path: Path) -> None:
    """The mean of the updates of the same clients that are seen one by one, and their samples."""
    shared = {"server": None, "protocol": protocol, "batch_size": 2, "rounds": 1}
    _, each = run(config_of(tmp_path, "each", **shared))
    config = config_of(tmp_path, "mean", **shared, aggregated=True)
    _, folder = run(config)
    assert keys(folder.updates()) == keys(folder.truth()) == ["r0001-c0000"]
    mean = InterceptedUpdate.load(folder.updates() / "r0001-c0000.safetensors")
    assert (mean.clients, mean.aggregation) == (2, "weighted_mean")
    own = [InterceptedUpdate.load(path) for path in update_files(each.updates())]
    assert mean.num_examples == sum(update.num_examples for update in own)
    for name in own[0].sent:
        parts = [update.received[name].double() for update in own]
        if protocol == "fedavg":
            parts = [part - own[0].sent[name].double() for part in parts]
        torch.testing.assert_close(mean.received[name].double(), (parts[0] + parts[1]) / 2)
    truths = [GroundTruth.load(path) for path in update_files(each.truth())]
    joined = GroundTruth.load(folder.truth() / "r0001-c0000.safetensors")
    assert torch.equal(joined.inputs, torch.cat([truth.inputs for truth in truths]))
    assert torch.equal(joined.labels, torch.cat([truth.labels for truth in truths]))


def test_a_server_behind_secure_aggregation_sends_the_same_to_all_and_reads_their_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, settings={"rounds": 2}, aggregated=True, rounds=3)
    weights = weights_by_round(config, monkeypatch)
    folder = RunFolder(Path(config.output))
    rounds = [f"r000{r}-c0000" for r in (1, 2, 3)]
    assert keys(folder.sent()) == keys(folder.updates()) == keys(folder.truth()) == rounds
    (entry,) = read_summary(folder.summary)["server"]["readings"]
    assert (entry["rounds"], entry["samples"], entry["found"]) == ([1, 2], 2, 2)
    # The global model is that of the others, as without secure aggregation.
    alone = weights_by_round(config_of(tmp_path, "b", rounds=3), monkeypatch)
    assert all(same_tensors(*pair) for pair in zip(weights, alone, strict=True))


def test_a_mean_is_not_attacked_within_the_round(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"`victims\.when` to be after where `victims\.agg"):
        config_of(tmp_path, aggregated=True, when="during")


def test_a_model_that_cannot_be_attacked_any_more_is_sent_as_it_is(tmp_path: Path) -> None:
    config = config_of(tmp_path, toy="OnlyOnce", victim_clients=[0], rounds=3)
    events = Recorder()
    summary, folder = run(config, observers=[events])
    assert keys(folder.sent()) == ["r0001-c0000"]
    assert keys(folder.updates()) == [f"r000{r}-c0000" for r in (1, 2, 3)]
    told = [(round_, why) for _, round_, _, why in events.arguments("client_failed")]
    assert [round_ for round_, _ in told] == [2, 3]
    assert told[0][1].startswith("only_once leaves the global model as it is: Expected a new")
    assert (summary["status"], summary["federation"]["failures"]) == ("complete", 0)
    assert summary["server"]["sent"] == 1


def test_clients_that_refuse_what_they_are_sent(tmp_path: Path) -> None:
    """By the guard's mod: the refusal is told, and nothing is read."""
    # So few samples can be told apart by any model.
    sizes = {f"exposed_{size}": 1.0 for size in (64, 128, 256)}
    settings = {"limits": sizes | {"rare": 1.0}}
    guard = {"class_path": "fedleak.federation.guard.GuardMod", "init_args": settings}
    events = Recorder()
    config = config_of(
        tmp_path, protocol="fedavg", batch_size=16, rounds=1, mods=[guard],
        server=Plugin("fedleak.servers.imprint.Imprint"),
    )  # fmt: skip
    summary, folder = run(config, observers=[events])
    failed = {client: why for _, _, client, why in events.arguments("client_failed")}
    assert set(failed) == {0, 2}
    assert all("GuardMod" in why and "parallel" in why for why in failed.values())
    assert (summary["server"]["sent"], summary["server"]["answered"]) == (2, 0)
    (skipped,) = events.arguments("attack_skipped")
    assert skipped[2] == "no client of `victims` answered what it was sent"
    assert summary["federation"]["failures"] == 2
    assert keys(folder.updates()) == []


def test_a_module_in_front_of_the_model_is_trained_by_all_and_read_from_the_victims(
    tmp_path: Path,
) -> None:
    """The exact pixels of a batch of a convolutional model, and again from the saved updates."""
    server = Plugin("fedleak.servers.imprint_module.ImprintModule", {"units": 60})
    config = config_of(
        tmp_path, server=server, path="fedleak.models.lenet.LeNet", model_args={}, batch_size=4,
        rounds=1, victim_clients=[0],
    )  # fmt: skip
    summary, folder = run(config)
    (entry,) = summary["server"]["readings"]
    assert entry["found"] >= 1
    assert entry["certified"] >= 1
    rows = read_rows(folder.results)
    assert {row["attack"] for row in rows} == {"imprint_module"}
    assert max(row["ssim"] for row in rows) > 0.99
    update = InterceptedUpdate.load(folder.updates() / "r0001-c0000.safetensors")
    assert bool(update.sent["imprint.back.weight"].any())
    again = config_of(
        tmp_path, "again", server=server, path="fedleak.models.lenet.LeNet", model_args={},
        batch_size=4, rounds=1, victim_clients=[0], attacks=(attack_plugin("iga", iterations=2),),
    )  # fmt: skip
    assert experiment.attack_run(folder.path, again, trust=True)["status"] == "complete"


@pytest.mark.parametrize("rate", ["client", "server"])
def test_bins_reads_the_mean_of_all_clients(rate: str, tmp_path: Path) -> None:
    """Behind secure aggregation: the same weights to all, and the mean alone is seen."""
    tiny_data(tmp_path, samples=640)
    config = config_of(
        tmp_path, server=Plugin("fedleak.servers.bins.Bins", {"steps": 0, "rate": rate}),
        protocol="fedavg", batch_size=16, rounds=2, victim_clients=None, aggregated=True,
        path=f"{__name__}.SmallConv", model_args={}, obeys={"lr": "learning_rate"},
    )  # fmt: skip
    summary, folder = run(config)
    assert keys(folder.updates()) == ["r0001-c0000", "r0002-c0000"]
    (entry,) = summary["server"]["readings"]
    assert (entry["rounds"], entry["samples"]) == ([1, 2], 640)
    assert entry["certified"] >= 8
    rows = [row for row in read_rows(folder.results) if row["certified"]]
    assert len(rows) == entry["certified"]
    assert min(row["feature_cosine"] for row in rows) > 1 - 1e-5
