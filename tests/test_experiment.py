"""Whole runs from configuration to results, with the clients in this process instead of on Ray."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import load_file, save_file

from fedleak import experiment
from fedleak.config import RunConfig
from fedleak.errors import BadInput
from fedleak.experiment import RunFailed
from fedleak.registry import Plugin
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import COLUMNS, read_rows
from fedleak.updates.update import InterceptedUpdate
from tests.federation.runs import (
    Finished,
    Recorder,
    attack_plugin,
    finished_run,
    in_process,
    interrupt,
    tiny_config,
    tiny_data,
    without_seconds,
)

MODULES = "tests.federation.user_models"
PRECODE = {"width": 12, "precode": {"bottleneck_size": 6}}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(tmp_path_factory)


@pytest.fixture(autouse=True)
def _in_process() -> Iterator[None]:
    with in_process():
        yield


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny_data(tmp_path)


def run(config: RunConfig, *observers: Recorder, **flags: bool) -> list[dict[str, str]]:
    """The rows of a run, comparable."""
    experiment.run(config, observers, **flags)
    return rows_of(config)


def rows_of(config: RunConfig) -> list[dict[str, str]]:
    return without_seconds(read_rows(RunFolder(Path(config.output)).results))


def status_of(config: RunConfig) -> str:
    return json.loads((Path(config.output) / "summary.json").read_text())["status"]


def in_order(rows: list[dict[str, str]]) -> list[tuple[str, ...]]:
    return sorted(tuple(row.values()) for row in rows)


# ------------------------------------------------------------------------------- the run's folder


def test_a_run_leaves_exactly_these_files(finished: Finished) -> None:
    found = {
        str(path.relative_to(finished.folder.path))
        for path in finished.folder.path.rglob("*")
        if path.is_file()
    }
    keys = [f"r000{r}-c000{c}" for r in (1, 2) for c in range(4)]
    updates = [*keys, "r0001-global", "r0002-global"]
    expected = {"config.yaml", "results.csv", "summary.json", "figures/reconstructions.png"}
    expected |= {"diagnostics.jsonl"}
    for variant in ("", "baseline/"):
        expected |= {f"updates/{variant}{name}.safetensors" for name in updates}
        expected |= {f"truth/{variant}{key}.safetensors" for key in keys}
    models = ("smlp", "smlp+precode")
    pairs = [("smlp", "iga"), ("smlp+precode", "iga"), ("smlp+precode", "nra")]
    expected |= {
        f"figures/victims/{model}-{attack}-{key}-{sample}.png"
        for model, attack in pairs for key in keys for sample in (0, 1)
    }  # fmt: skip
    events = {name for name in found if "/events.out.tfevents." in name}
    assert found - events == expected
    runs = {*models, *(f"{attack} on {model}" for model, attack in pairs)}
    folders = sorted(name.rpartition("/")[0] for name in events)
    # Of the run itself there are two, as its pictures have a file of their own.
    assert folders == sorted(["tensorboard"] * 2 + [f"tensorboard/{name}" for name in runs])


def test_results_have_a_row_for_every_sample(finished: Finished) -> None:
    header, *lines = finished.folder.results.read_text().splitlines()
    assert header == (
        "round,client,sample,attack,defense,model,dataset,batch_size,mse,psnr,ssim,success,"
        "noise_mse,cost,iterations,seconds,label_accuracy,explained"
    )
    assert tuple(header.split(",")) == (*COLUMNS, "label_accuracy", "explained")
    rows = read_rows(finished.folder.results)
    assert len(rows) == len(lines) == 3 * 2 * 4 * 2
    places = {
        (row["model"], row["attack"], row["round"], row["client"], row["sample"]) for row in rows
    }
    assert len(places) == len(rows)
    for row in rows:
        assert (row["defense"], row["dataset"], row["batch_size"]) == ("none", "tiny", 2)
        assert row["iterations"] == 10
        assert 0 <= row["mse"] <= 1
        assert -1 <= row["ssim"] <= 1
        assert 0 <= row["cost"] <= 2
        assert row["seconds"] > 0
        assert row["success"] == int(row["ssim"] >= 0.6)
        assert (row["noise_mse"] >= 0) == (row["attack"] == "nra")  # NaN is not


def test_summary_has_exactly_these_keys(finished: Finished) -> None:
    summary = json.loads(finished.folder.summary.read_text())
    assert summary == finished.summary
    assert list(summary) == ["status", "config_hash", "data", "attacks", "federation"]
    assert summary["status"] == "complete"
    assert summary["config_hash"] == finished.config.hash
    assert [(entry["attack"], entry["model"]) for entry in summary["attacks"]] == [
        ("iga", "smlp"), ("iga", "smlp+precode"), ("nra", "smlp+precode"),
    ]  # fmt: skip
    rows = read_rows(finished.folder.results)
    for entry in summary["attacks"]:
        assert list(entry) == [
            "attack", "defense", "model", "dataset", "n", "mse", "psnr", "ssim", "asr", "seconds",
            "label_accuracy", "explained", "unsupported",
        ]  # fmt: skip
        mine = [r for r in rows if (r["attack"], r["model"]) == (entry["attack"], entry["model"])]
        assert entry["n"] == len(mine) == 16
        for name, column in [
            ("mse", "mse"),
            ("psnr", "psnr"),
            ("ssim", "ssim"),
            ("asr", "success"),
        ]:
            assert entry[name] == pytest.approx(sum(row[column] for row in mine) / 16)
    metrics = finished.events.arguments("round_evaluated")[-1]
    assert metrics[:2] == ("smlp+precode", 2)
    assert summary["federation"] == {
        "rounds": 2, "clients": 4, "failures": 0, "accuracy": metrics[2]["test/accuracy"],
        "lost_rounds": [], "diverged_round": None,
    }  # fmt: skip


def test_the_configuration_reads_back(finished: Finished) -> None:
    assert RunConfig.load(finished.folder.config) == finished.config
    text = finished.folder.config.read_text()
    for name in ("fedleak", "torch", "flwr"):
        assert f"  {name}: " in text.partition("versions:")[2]


def test_updates_carry_their_headers(finished: Finished) -> None:
    for variant, model in (("", "smlp+precode"), ("baseline", "smlp")):
        path = finished.folder.updates(variant) / "r0002-c0003.safetensors"
        update = InterceptedUpdate.load(path)
        assert (update.round, update.client, update.protocol) == (2, 3, "fedsgd")
        assert (update.num_examples, update.model) == (2, model)


def test_events_come_in_order(finished: Finished) -> None:
    names = [name for name in finished.events.names() if name != "attack_progressed"]
    federation = (
        ["federation_started", "round_evaluated"]
        + (["client_answered"] * 4 + ["round_evaluated"]) * 2
    )  # fmt: skip
    attacked = ["attack_started", *["victim_attacked"] * 8]
    assert names == [
        "data_loaded", *federation, *federation,
        *attacked, "attack_skipped", *attacked, *attacked, "run_ended",
    ]  # fmt: skip
    assert finished.events.arguments("attack_skipped") == [
        ("nra", "smlp", "nra needs a model that draws noise and SMLP draws none")
    ]
    assert finished.events.arguments("run_ended") == [("complete",)]


# ------------------------------------------------------------------------------------- determinism


def test_the_same_seed_gives_the_same_figures(data: Path, tmp_path: Path) -> None:
    def figures(name: str, **changes: Any) -> tuple[list[dict[str, str]], list[Any]]:
        config = tiny_config(
            data, tmp_path / name, rounds=2, model_args=PRECODE, protocol="fedavg", batch_size=4,
            attacks=(attack_plugin("nra"),), victim_clients=[1], **changes,
        )  # fmt: skip
        observer = Recorder()
        torch.manual_seed(len(name))  # the state of the process does not matter
        return run(config, observer), observer.arguments("round_evaluated")

    first, again, other = figures("a"), figures("again"), figures("other", seed=1)
    assert first == again
    assert first[0] != other[0]


@pytest.mark.parametrize("at_once", [1, 16])
def test_attacks_in_the_round_give_the_same_as_afterwards(
    at_once: int, data: Path, tmp_path: Path
) -> None:
    def rows(when: str) -> tuple[list[Any], RunConfig, Recorder]:
        config = tiny_config(
            data, tmp_path / when, rounds=2, when=when, model_args=PRECODE, victim_clients=[0, 2],
            attacks=(attack_plugin("iga", at_once=at_once), attack_plugin("nra", at_once=at_once)),
        )  # fmt: skip
        observer = Recorder()
        experiment.run(config, [observer])
        found = read_rows(RunFolder(Path(config.output)).results)
        key = ("model", "attack", "round", "client", "sample")
        return sorted(found, key=lambda row: [row[name] for name in key]), config, observer

    after, _, _ = rows("after")
    during, config, observer = rows("during")
    assert len(after) == len(during) == 2 * 2 * 2 * 2
    for one, two in zip(after, during, strict=True):
        if at_once == 1:
            assert without_seconds([one]) == without_seconds([two])
        else:  # batched products round differently
            assert [one[n] for n in COLUMNS[:8]] == [two[n] for n in COLUMNS[:8]]
            for name in ("mse", "psnr", "ssim", "cost"):
                assert one[name] == pytest.approx(two[name], rel=1e-3, abs=1e-4)
    # They were made in the rounds, and not once more afterwards.
    names = observer.names()
    last_answer = max(i for i, name in enumerate(names) if name == "client_answered")
    assert names.index("victim_attacked") < last_answer
    assert "attack_progressed" in names
    assert "attack_started" not in names
    assert status_of(config) == "complete"


def test_diagnostics_are_kept_in_the_run_folder(data: Path, tmp_path: Path) -> None:
    config = tiny_config(
        data, tmp_path / "run", model_args=PRECODE, batch_size=1, victim_clients=[0, 2],
        attacks=(Plugin("fedleak.attacks.exact_nra.ExactNRA"), attack_plugin("nra")),
    )  # fmt: skip
    run(config)
    lines = RunFolder(Path(config.output)).diagnostics.read_text().splitlines()
    found = [json.loads(line) for line in lines]
    found = [line for line in found if line["attack"] == "exact_nra"]
    assert [(line["attack"], line["client"]) for line in found] == [
        ("exact_nra", 0), ("exact_nra", 2)
    ]  # fmt: skip
    first, second = (" | ".join(line["findings"]) for line in found)
    assert "no optimisation" in first
    # No unit of the second layer is active for this image: its gradient tells nothing of it.
    assert "the gradient of its weight is 0" in second
    assert "minimum total variation image from" in second


# -------------------------------------------------------------------------- trouble in a federation


def test_a_client_that_diverges_is_refused_and_not_attacked(data: Path, tmp_path: Path) -> None:
    config = tiny_config(
        data, tmp_path / "run", path=f"{MODULES}.Diverging", model_args={}, partition="shards",
        shards_per_client=1, attacks=(attack_plugin("iga"),),
    )  # fmt: skip
    observer = Recorder()
    rows = run(config, observer)
    assert len(rows) == 3 * 2
    assert observer.arguments("attack_skipped") == []
    assert status_of(config) == "complete"
    ((_, round_, _, reason),) = observer.arguments("client_failed")
    assert round_ == 1
    assert "holds NaN or infinity" in reason


def test_an_attack_that_finds_no_labels_is_skipped(data: Path, tmp_path: Path) -> None:
    config = tiny_config(
        data, tmp_path / "run", path=f"{MODULES}.Unbiased", model_args={}, labels="recovered",
        attacks=(attack_plugin("iga"),),
    )  # fmt: skip
    observer = Recorder()
    assert run(config, observer) == []
    assert status_of(config) == "complete"
    ((_, _, reason),) = observer.arguments("attack_skipped")
    assert "to recover labels from" in reason


@pytest.mark.parametrize("when", ["during", "after"])
def test_a_failing_client_is_counted(when: str, data: Path, tmp_path: Path) -> None:
    config = tiny_config(
        data, tmp_path / "run", path=f"{MODULES}.Broken", model_args={}, rounds=2,
        partition="shards", shards_per_client=1, when=when, attacks=(attack_plugin("iga"),),
    )  # fmt: skip
    observer = Recorder()
    summary = experiment.run(config, [observer])
    assert summary["federation"]["failures"] == 2
    failures = observer.arguments("client_failed")
    assert [(model, round_) for model, round_, _, _ in failures] == [("broken", 1), ("broken", 2)]
    assert {reason for *_, reason in failures} == {"the camera is broken"}
    assert summary["attacks"][0]["n"] == 2 * 3 * 2


class Stubborn(FedAvg):
    """Breaks down in the second round, once there is a file that tells it to."""

    def __init__(self, flag: str = "", **settings: Any) -> None:
        super().__init__(**settings)
        self._flag = Path(flag)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        if server_round == 2 and self._flag.exists():
            raise ValueError("no memory\nleft")
        return super().aggregate_train(server_round, replies)


def test_a_federation_that_breaks_down_says_why_and_can_be_resumed(
    data: Path, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    config = tiny_config(
        data, tmp_path / "run", rounds=3, attacks=(attack_plugin("iga"),),
        strategy="tests.test_experiment.Stubborn", strategy_options={"flag": str(flag)},
    )  # fmt: skip
    observer = Recorder()
    with pytest.raises(RunFailed, match=r"^The federation failed: no memory left\.$"):
        run(config, observer)
    assert status_of(config) == "failed"
    assert observer.arguments("run_ended") == [("failed",)]
    flag.unlink()
    rows = run(config, resume=True)
    assert status_of(config) == "complete"
    assert rows == run(replace(config, output=str(tmp_path / "whole")))


# ------------------------------------------------------------------------ interruption and resuming


def test_an_interrupted_attack_goes_on_where_it_was(data: Path, tmp_path: Path) -> None:
    def configured(name: str) -> RunConfig:
        return tiny_config(
            data, tmp_path / name, model_args=PRECODE,
            attacks=(attack_plugin("iga", at_once=2), attack_plugin("nra", at_once=2)),
        )  # fmt: skip

    whole = run(configured("whole"))
    config = configured("run")
    first = Recorder("victim_attacked", after(2, interrupt))
    with pytest.raises(KeyboardInterrupt):
        run(config, first)
    assert status_of(config) == "interrupted"
    assert first.arguments("run_ended") == [("interrupted",)]
    assert rows_of(config) == whole[:4]  # two updates of two samples
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["attacks"][0]["n"] == 4

    second = Recorder()
    rows = run(config, second, resume=True)
    assert rows == whole
    assert status_of(config) == "complete"
    assert "federation_started" not in second.names()
    assert second.arguments("attack_started") == [
        ("iga", "smlp+precode", 4, 2), ("nra", "smlp+precode", 4, 0),
    ]  # fmt: skip
    assert len(second.arguments("victim_attacked")) == 2 + 4


def test_an_update_that_cannot_be_attacked_costs_no_other(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", attacks=(Plugin("tests.spies.Fussy"),))
    observer = Recorder()
    rows = run(config, observer)
    assert [int(row["client"]) for row in rows] == [0, 0, 2, 2, 3, 3]
    (skipped,) = observer.arguments("attack_skipped")
    assert skipped[0] == "fussy"
    assert skipped[-1] == "r0001-c0001: Expected another client, got 1."


def test_an_interruption_in_the_middle_of_an_attack_leaves_no_half_rows(
    data: Path, tmp_path: Path
) -> None:
    config = tiny_config(data, tmp_path / "run", attacks=(attack_plugin("iga"),))
    with pytest.raises(KeyboardInterrupt):
        run(config, Recorder("attack_progressed", interrupt))
    assert status_of(config) == "interrupted"
    assert rows_of(config) == []
    assert len(run(config, resume=True)) == 8


@pytest.mark.parametrize("ending", ["in a number", "before the last columns"])
def test_a_killed_run_whose_last_row_is_half_written_goes_on(
    ending: str, data: Path, tmp_path: Path
) -> None:
    config = tiny_config(data, tmp_path / "run", attacks=(attack_plugin("iga", at_once=1),))
    with pytest.raises(KeyboardInterrupt):
        run(config, Recorder("victim_attacked", after(2, interrupt)))
    results = tmp_path / "run" / "results.csv"
    written = results.read_text()
    end = len(written) - 3 if ending == "in a number" else written[:-1].rindex(",")
    results.write_text(written[:end])
    (tmp_path / "run" / "summary.json").unlink()
    rows = run(config, resume=True)
    whole = run(replace(config, output=str(tmp_path / "whole")))
    assert in_order(rows) == in_order(whole)


@pytest.mark.parametrize("strategy", ["FedAvg", "FedAdam", "FedAvgM"])
@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_an_interrupted_federation_goes_on_where_it_was(
    strategy: str, protocol: str, data: Path, tmp_path: Path
) -> None:
    options = {"FedAvgM": {"server_momentum": 0.9}, "FedAdam": {"beta_1": 0.9, "beta_2": 0.99}}

    def configured(name: str) -> RunConfig:
        return tiny_config(
            data, tmp_path / name, rounds=3, protocol=protocol, strategy=strategy, batch_size=8,
            strategy_options=options.get(strategy, {}), model_args=PRECODE,
        )  # fmt: skip

    observer = Recorder()
    run(configured("whole"), observer)
    config = configured("run")
    first = Recorder("round_evaluated", after(2, interrupt))  # round 0, round 1
    with pytest.raises(KeyboardInterrupt):
        run(config, first)
    assert status_of(config) == "interrupted"
    updates = tmp_path / "run" / "updates"
    assert sorted(path.name for path in updates.iterdir() if path.is_file()) == [
        *[f"r0001-c000{client}.safetensors" for client in range(4)],
        "r0001-global.safetensors", "unfinished.safetensors",
    ]  # fmt: skip

    second = Recorder()
    run(config, second, resume=True)
    assert second.arguments("federation_started") == [("smlp+precode", 4, 2, 3)]
    evaluated = [r.arguments("round_evaluated") for r in (observer, first, second)]
    assert evaluated[0] == evaluated[1] + evaluated[2]
    for path in sorted((tmp_path / "whole" / "updates").iterdir()):
        expected, found = load_file(path), load_file(updates / path.name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), path.name
    summaries = [json.loads((tmp_path / n / "summary.json").read_text()) for n in ("whole", "run")]
    assert summaries[0] == summaries[1]


def test_a_round_interrupted_among_its_attacks_is_run_again_without_them(
    data: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        data, tmp_path / "run", rounds=2, when="during", attacks=(attack_plugin("iga"),)
    )
    whole = run(replace(config, output=str(tmp_path / "whole")))
    with pytest.raises(KeyboardInterrupt):
        run(config, Recorder("victim_attacked", after(6, interrupt)))  # in round 2
    second = Recorder()
    rows = run(config, second, resume=True)
    assert in_order(rows) == in_order(whole)
    assert [event[2].key for event in second.arguments("victim_attacked")] == [
        "r0002-c0002", "r0002-c0003",
    ]  # fmt: skip


def test_resuming_a_complete_run_does_nothing(finished: Finished) -> None:
    def stamps() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in finished.folder.path.rglob("*")}

    before, observer = stamps(), Recorder()
    summary = experiment.run(finished.config, [observer], resume=True)
    assert summary == finished.summary
    assert observer.events == []
    changed = {Path(name).name for name, stamp in stamps().items() if before.get(name) != stamp}
    assert changed <= {"config.yaml", finished.folder.path.name}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}"])
def test_a_damaged_summary_is_written_anew(finished: Finished, tmp_path: Path, text: str) -> None:
    shutil.copytree(finished.folder.path, tmp_path / "run")
    config = replace(finished.config, output=str(tmp_path / "run"))
    summary = tmp_path / "run" / "summary.json"
    summary.write_text(text, encoding="utf-8")
    experiment.run(config, resume=True)
    again = json.loads(summary.read_text(encoding="utf-8"))
    assert again["status"] == "complete"
    assert again["attacks"] == finished.summary["attacks"]


def test_overwriting_begins_again(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", rounds=2, attacks=(attack_plugin("iga"),))
    run(config)
    (tmp_path / "run" / "updates" / "left.txt").touch()
    shorter = tiny_config(data, tmp_path / "run", attacks=(attack_plugin("iga"),))
    with pytest.raises(BadInput, match="`--resume`, replace it with `--overwrite`, or choose"):
        run(shorter)
    with pytest.raises(BadInput, match=r"Expected the configuration of .* got another one"):
        run(shorter, resume=True)
    with pytest.raises(BadInput, match="Expected one of `--resume` and `--overwrite`, got both"):
        run(shorter, resume=True, overwrite=True)
    assert len(rows_of(config)) == 2 * 8
    assert len(run(shorter, overwrite=True)) == 8
    assert not (tmp_path / "run" / "updates" / "left.txt").exists()
    assert not list((tmp_path / "run" / "updates").glob("r0002*"))


def test_a_folder_of_something_else_is_left_alone(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").touch()
    config = tiny_config(data, other)
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(BadInput, match="Expected the folder of a run or nothing"):
            run(config, **flags)
    assert [path.name for path in other.iterdir()] == ["chapter1.tex"]


def after(count: int, action: Callable[..., None]) -> Callable[..., None]:
    """Calls the action at the count-th call."""
    calls: list[None] = []

    def call(*arguments: Any) -> None:
        calls.append(None)
        if len(calls) == count:
            action(*arguments)

    return call


# ------------------------------------------------------------------------------- bad configurations


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"clients": 65}, r"at most the number of samples, 64, got 65"),
        ({"clients": 16, "batch_size": 5}, r"Expected every client to have a batch .* 4 of the 64"),
        ({"strategy": "FedAvgg"}, r"Unknown strategy `FedAvgg`.*Did you mean `FedAvg`\?"),
        ({"strategy": "FedAdam", "strategy_options": {"et": 1}}, r"`et`.*Did you mean `eta`\?"),
        ({"strategy": "QFedAvg"}, r"Expected options that strategy QFedAvg accepts: .*client_le"),
        ({"gpus_per_client": 64}, r"Expected `federation.gpus_per_client` to be at most .* got 64"),
        ({"path": f"{MODULES}.IncompatibleLayers", "model_args": {}},
         r"Expected a model for images of shape \(1, 8, 8\) \(tiny\), but incompatiblelayers "
         r"fails on them: .*\(2x5 and 6x4\)"),
        ({"path": f"{MODULES}.OnlyTrainingStep", "model_args": {"side": 16}},
         r"\(1, 8, 8\) .* \(2x64 and 256x4\)"),
        ({"attacks": (attack_plugin("nra"),)}, r"nra needs .* draws noise and SMLP draws none"),
        ({"attacks": (attack_plugin("iga", iterations=-5),)}, r"`iterations` to be at least 1"),
        ({"attacks": (attack_plugin("iga"),) * 2}, r"got iga twice"),
        ({"model_args": {"precode": {"bottleneck_size": 0}}}, r"at least 1, got 0"),
        ({"model_args": {"precode": {"beta": -0.1}}}, r"at least 0, got -0.1"),
        ({"device": "abacus"}, r"Expected `device` to be one that torch can use here"),
    ],
)  # fmt: skip
def test_bad_configurations_are_refused_before_anything_is_written(
    changes: dict[str, Any], sentence: str, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    with pytest.raises(BadInput, match=sentence) as caught:
        run(tiny_config(data, output, **changes))
    assert "\n" not in str(caught.value)
    assert not output.exists()


# ------------------------------------------------------------------------- attacks on saved updates


def attack_config(finished: Finished, output: Path, *names: str, **victims: Any) -> RunConfig:
    return replace(
        finished.config, attacks=tuple(attack_plugin(name) for name in names), output=str(output),
        victims=replace(finished.config.victims, **victims),
    )  # fmt: skip


def test_an_attack_on_a_runs_folder(finished: Finished, tmp_path: Path) -> None:
    config = attack_config(finished, tmp_path / "again", "iga", "nra")
    summary = experiment.attack_run(finished.folder.path, config)
    assert rows_of(config) == rows_of(finished.config)
    assert summary["federation"] == finished.summary["federation"]
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert names == {
        "config.yaml", "diagnostics.jsonl", "figures", "results.csv", "summary.json", "tensorboard",
        "truth", "updates",
    }  # fmt: skip
    # The updates are there as well, so that the folder can be attacked in its turn.
    other = attack_config(finished, tmp_path / "third", "iga")
    experiment.attack_run(tmp_path / "again", other)
    assert rows_of(other) == [row for row in rows_of(finished.config) if row["attack"] == "'iga'"]


@pytest.mark.parametrize("variant", ["", "baseline"])
def test_an_attack_on_one_update(variant: str, finished: Finished, tmp_path: Path) -> None:
    path = finished.folder.updates(variant) / "r0002-c0001.safetensors"
    config = attack_config(finished, tmp_path / "one", "iga")
    experiment.attack_run(path, config)
    rows = rows_of(config)
    model = repr("smlp" if variant else "smlp+precode")
    assert [(row["round"], row["client"], row["model"]) for row in rows] == [("2", "1", model)] * 2


def test_an_attack_without_the_truth_recovers_the_labels(
    finished: Finished, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(finished.folder.path, bare)
    shutil.rmtree(bare / "truth")
    known = attack_config(finished, tmp_path / "known", "iga")
    with pytest.raises(BadInput, match="Expected the labels of update r0001-c0000 in truth/"):
        experiment.attack_run(bare, known)
    assert not (tmp_path / "known").exists()

    config = attack_config(finished, tmp_path / "out", "iga", labels="recovered")
    observer = Recorder()
    summary = experiment.attack_run(bare, config, [observer])
    assert [entry["ssim"] for entry in summary["attacks"]] == [None, None]
    attacked = observer.arguments("victim_attacked")
    assert len(attacked) == 16
    for _, _, update, truth, reconstruction, rows in attacked:
        assert truth is None
        assert len(reconstruction.labels) == 2
        assert "ssim" not in rows[0]
        # The labels are those that the client had.
        where = finished.folder.truth("baseline" if update.model == "smlp" else "")
        true = load_file(where / f"{update.key}.safetensors")["labels"]
        assert sorted(reconstruction.labels.tolist()) == sorted(true.tolist())


ALONE = """
import sys
sys.modules["flwr"] = sys.modules["ray"] = None
from pathlib import Path
from fedleak import experiment
from fedleak.config import RunConfig
source, output = map(Path, sys.argv[1:])
config = RunConfig.load(source / "config.yaml")
values = config.to_dict() | {"output": str(output)}
summary = experiment.attack_run(source, RunConfig.from_dict(values))
assert summary["status"] == "complete"
assert "fedleak.federation" not in sys.modules
"""


def test_an_attack_needs_neither_flower_nor_ray(finished: Finished, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(finished.folder.path), str(tmp_path / "out")],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = without_seconds(read_rows(tmp_path / "out" / "results.csv"))
    assert len(found) == len(rows_of(finished.config))


def damaged(finished: Finished, folder: Path, damage: Callable[[Path], None]) -> Path:
    copy = folder / "damaged"
    shutil.copytree(finished.folder.path, copy)
    damage(copy / "updates" / "r0001-c0002.safetensors")
    return copy


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def garble(path: Path) -> None:
    path.write_bytes(b"\x00garbage" * 10)


def poison(path: Path) -> None:
    _rewrite(path, lambda tensors: tensors["classifier.bias"].fill_(float("nan")))


def reshape(path: Path) -> None:
    _rewrite(path, lambda tensors: tensors.update({"classifier.bias": torch.zeros(9)}))


def rename(path: Path) -> None:
    _rewrite(path, lambda tensors: tensors.update({"head": tensors.pop("classifier.bias")}))


def forget_the_global_model(path: Path) -> None:
    path.with_name("r0001-global.safetensors").unlink()


def _rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, header)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (truncate, "Expected a complete safetensors file at .*r0001-c0002"),
        (garble, "Expected a complete safetensors file at .*r0001-c0002"),
        (poison, "Expected finite numbers, got NaN or infinity in `classifier.bias`"),
        (reshape, r"Expected `classifier.bias` of shape \(4,\) .*, got \(9,\)"),
        (rename, r"lack \['classifier.bias'\] and additionally have \['head'\]"),
        (forget_the_global_model, "Expected a file at .*r0001-global.safetensors, found none"),
        (Path.unlink, ""),
    ],
)
def test_damaged_updates_are_refused_before_anything_is_written(
    damage: Callable[[Path], None], sentence: str, finished: Finished, tmp_path: Path
) -> None:
    source = damaged(finished, tmp_path, damage)
    for path in (source, source / "updates" / "r0001-c0002.safetensors"):
        config = attack_config(finished, tmp_path / "out", "iga")
        if damage is Path.unlink and path == source:
            continue  # one update less is no mistake
        with pytest.raises(BadInput, match=sentence or "Expected saved updates at") as caught:
            experiment.attack_run(path, config)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_updates_of_another_model_are_refused(finished: Finished, tmp_path: Path) -> None:
    plugin = replace(finished.config.model, init_args={"width": 13})
    config = replace(attack_config(finished, tmp_path / "out", "iga"), model=plugin, baseline=False)
    with pytest.raises(BadInput, match="give the model that the federation trained"):
        experiment.attack_run(finished.folder.path, config)
    assert not (tmp_path / "out").exists()


def test_the_output_of_an_attack_is_not_the_run_itself(finished: Finished) -> None:
    for output in (finished.folder.path, finished.folder.path.parent):
        config = attack_config(finished, output, "iga")
        with pytest.raises(BadInput, match="Expected `--output` to be another folder than"):
            experiment.attack_run(finished.folder.path, config, overwrite=True)
    assert finished.folder.results.is_file()


def test_an_interrupted_attack_on_saved_updates_is_resumed(
    finished: Finished, tmp_path: Path
) -> None:
    config = attack_config(finished, tmp_path / "out", "iga", "nra")
    with pytest.raises(KeyboardInterrupt):
        experiment.attack_run(
            finished.folder.path, config, [Recorder("victim_attacked", after(9, interrupt))]
        )
    assert status_of(config) == "interrupted"
    with pytest.raises(BadInput, match="--resume"):
        experiment.attack_run(finished.folder.path, config)
    experiment.attack_run(finished.folder.path, config, resume=True)
    assert rows_of(config) == rows_of(finished.config)


@pytest.mark.parametrize("source", ["", "updates/r0009-c0000.safetensors", "elsewhere"])
def test_where_no_updates_are(source: str, tmp_path: Path, finished: Finished) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    if source != "elsewhere":
        shutil.copy(finished.folder.config, empty)
    config = attack_config(finished, tmp_path / "out", "iga")
    expected = "Expected the folder of a run" if source == "elsewhere" else "Expected saved updates"
    with pytest.raises(BadInput, match=expected):
        experiment.attack_run(empty / source, config)
    assert not (tmp_path / "out").exists()
