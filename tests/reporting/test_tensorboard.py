"""Event files, read back by TensorBoard's own reader."""

import io
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from fedleak import experiment
from fedleak.build import make_data
from fedleak.config import RunConfig
from fedleak.registry import Plugin
from fedleak.reporting import Figures, TensorBoard
from fedleak.reporting.figures import CARD, draw_page
from fedleak.reporting.panels import read_panels
from fedleak.reporting.tensorboard import median
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import read_rows
from tests.federation.runs import (
    Finished,
    Recorder,
    attack_plugin,
    in_process,
    interrupt,
    tiny_config,
    tiny_data,
)

SCALING = (0.0,), (1.0,)
PAIRS = [("iga", "smlp"), ("iga", "smlp+precode"), ("nra", "smlp+precode")]
MODELS = ["smlp", "smlp+precode"]
PICTURES = "1 reconstructions/original beside each attack"
GROUPS = ["1 reconstructions", "2 attacks", "3 training", "4 clients", "5 victims", "6 results"]
Events = Mapping[str, EventAccumulator]


@pytest.fixture(autouse=True)
def _in_process() -> Iterator[None]:
    with in_process():
        yield


def read_events(folder: Path) -> dict[str, EventAccumulator]:
    """Everything in a run's event files, by sub-run; the run itself has no name."""
    everything = dict.fromkeys(("scalars", "images", "tensors"), 0)
    folders = {file.parent for file in folder.rglob("events.*")}
    return {
        path.name if path != folder else "": EventAccumulator(str(path), everything).Reload()
        for path in folders
    }


@pytest.fixture(scope="session")
def events(finished: Finished) -> Events:
    return read_events(finished.folder.tensorboard)


def curve(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def text_of(events: EventAccumulator, tag: str) -> str:
    (event,) = events.Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def charts(events: EventAccumulator) -> dict[str, dict[str, list[str]]]:
    """The layout of CUSTOM SCALARS: category -> title of a chart -> patterns of its tags."""
    written = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    return {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in Layout.FromString(written).category
    }


def result_line(events: EventAccumulator) -> tuple[dict[str, Any], set[str]]:
    """Hyperparameters and metrics of a sub-run in the HPARAMS tab."""

    def read(name: str) -> HParamsPluginData:
        return HParamsPluginData.FromString(events.summary_metadata[name].plugin_data.content)

    found = read("_hparams_/session_start_info").session_start_info.hparams
    settings = {name: getattr(found[name], found[name].WhichOneof("kind")) for name in found}
    metrics = read("_hparams_/experiment").experiment.metric_infos
    return settings, {metric.name.tag for metric in metrics}


def run_with(config: RunConfig, **options: Any) -> Events:
    """The events of a run that is made here."""
    experiment.run(config, [TensorBoard(config, *SCALING)], **options)
    return read_events(Path(config.output) / "tensorboard")


# -------------------------------------------------------------------------------- what stands where


def test_each_model_and_each_attack_has_a_sub_run(events: Events) -> None:
    assert set(events) == {"", *MODELS, *(f"{attack} on {model}" for attack, model in PAIRS)}
    for run, found in events.items():
        tags = {tag for kind in ("scalars", "images") for tag in found.Tags()[kind]}
        groups = {tag.partition("/")[0] for tag in tags}
        if not run:
            assert groups == {"1 reconstructions"}
        elif run in MODELS:
            assert groups == {"3 training", "4 clients"}
        else:
            assert groups == {"2 attacks", "5 victims", "6 results"}


def test_what_leaked_comes_first(events: Events) -> None:
    tags = {
        tag for found in events.values() for kind in ("scalars", "images")
        for tag in found.Tags()[kind]
    }  # fmt: skip
    # TensorBoard sorts the groups by name and unfolds the first two.
    assert sorted({tag.partition("/")[0] for tag in tags}) == GROUPS
    attacks = sorted(tag for tag in tags if tag.startswith("2 attacks/"))
    assert attacks == [
        "2 attacks/cost (median of victims)", "2 attacks/explained by round",
        "2 attacks/explained by victim", "2 attacks/ssim by round", "2 attacks/ssim by victim",
    ]  # fmt: skip


def test_models_and_attacks_share_their_tags(events: Events) -> None:
    for runs in (MODELS, [f"{attack} on {model}" for attack, model in PAIRS]):
        # Where noise was not restored, what a reconstruction explains is not known.
        own = [events[run].Tags()["scalars"] for run in runs]
        tags = [{tag for tag in found if not re.search("/kl|explained", tag)} for found in own]
        assert all(found == tags[0] for found in tags)


def test_every_tag_is_documented(events: Events) -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "read-tensorboard.md"
    text = page.read_text(encoding="utf-8")
    for found in events.values():
        for tag in [*found.Tags()["images"], *found.Tags()["scalars"]]:
            if tag.startswith(("1", "2", "6")):
                assert f"`{tag}`" in text
    for pattern in (
        "3 training/global model/METRIC", "3 training/mean of clients/METRIC",
        "4 clients/METRIC/client N", "5 victims/cost of rRRRR-cCCCC", "1 reconstructions/items",
    ):  # fmt: skip
        assert f"`{pattern}`" in text


# ----------------------------------------------------------------------------------------- pictures


def test_pictures_show_every_victim_with_titles_and_ssim(
    finished: Finished, events: Events
) -> None:
    assert events[""].Tags()["images"] == [PICTURES]
    images = events[""].Images(PICTURES)
    assert [image.step for image in images] == list(range(8))
    data = make_data(finished.config)
    panels = read_panels(finished.folder, finished.config, data.mean, data.std)
    titles = [f"{attack} on {model}" for attack, model in PAIRS]
    font = ImageFont.load_default(size=11)
    first, width = (int(font.getlength(t)) + 6 for t in ("round 1, client 0", "smlp+precode"))
    lefts = [6, *(6 + first + number * width for number in range(3))]
    for image in images:
        pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        two = panels[2 * image.step : 2 * image.step + 2]
        assert np.array_equal(pixels, np.asarray(draw_page(two, titles, "", CARD)))
        # Each column has its title: two lines of text above the first row of images.
        head = pixels[: pixels.shape[0] - 2 * (64 + 6 + 2 * 13)]
        for left, right in pairwise((*lefts, pixels.shape[1])):
            assert (head[:, left:right] < 128).any()


# ------------------------------------------------------------------------------------------ attacks


def test_cost_of_each_victim_by_iteration(finished: Finished, events: Events) -> None:
    attacked = finished.events.arguments("victim_attacked")
    assert len(attacked) == 3 * 8
    for attack, model, update, _, reconstruction, _ in attacked:
        points = curve(events[f"{attack} on {model}"], f"5 victims/cost of {update.key}")
        assert [step for step, _ in points] == [0, 10]
        assert points == [(step, pytest.approx(cost)) for step, cost in reconstruction.costs]


def test_median_of_the_costs(finished: Finished, events: Events) -> None:
    for attack, model in PAIRS:
        costs = [
            dict(arguments[4].costs) for arguments in finished.events.arguments("victim_attacked")
            if arguments[:2] == (attack, model)
        ]  # fmt: skip
        assert len(costs) == 8
        expected = [(i, pytest.approx(np.median([c[i] for c in costs]))) for i in (0, 10)]
        assert (
            curve(events[f"{attack} on {model}"], "2 attacks/cost (median of victims)") == expected
        )


def test_a_median_keeps_the_last_value_of_what_has_ended() -> None:
    curves = [[(0, 1.0), (10, 0.25)], [(0, 3.0), (10, 2.0), (20, 1.0)], [(0, 9.0), (20, 0.5)], []]
    assert median(curves) == [(0, 3.0), (10, 2.0), (20, 0.5)]
    assert median([]) == []


def test_ssim_by_victim_and_by_round(finished: Finished, events: Events) -> None:
    rows = read_rows(finished.folder.results)
    for attack, model in PAIRS:
        mine = [row for row in rows if (row["attack"], row["model"]) == (attack, model)]
        found = events[f"{attack} on {model}"]
        points = curve(found, "2 attacks/ssim by victim")
        assert points == [(step, pytest.approx(row["ssim"])) for step, row in enumerate(mine)]
        assert len(points) == 16
        for round_, mean in curve(found, "2 attacks/ssim by round"):
            own = [row["ssim"] for row in mine if row["round"] == round_]
            assert len(own) == 8
            assert mean == pytest.approx(np.mean(own))
        assert [step for step, _ in curve(found, "2 attacks/ssim by round")] == [1, 2]


# -------------------------------------------------------------------------------- training, clients


def test_curves_of_clients_and_of_the_global_model(finished: Finished, events: Events) -> None:
    expected: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for model, round_, client, metrics in finished.events.arguments("client_answered"):
        for name, value in metrics.items():
            tag = f"4 clients/{name}/client {client}"
            expected.setdefault((model, tag), []).append((round_, value))
    for model, round_, metrics in finished.events.arguments("round_evaluated"):
        for name, value in metrics.items():
            tag = f"3 training/global model/{name}"
            expected.setdefault((model, tag), []).append((round_, value))
    assert ("smlp", "4 clients/train/loss/client 3") in expected
    assert ("smlp+precode", "3 training/global model/test/accuracy") in expected
    for (model, tag), points in expected.items():
        assert curve(events[model], tag) == [(step, pytest.approx(value)) for step, value in points]
    untrained = curve(events["smlp"], "3 training/global model/test/loss")
    assert [step for step, _ in untrained] == [0, 1, 2]
    found = {
        (model, tag) for model in MODELS for tag in events[model].Tags()["scalars"]
        if not tag.startswith("3 training/mean of clients/")
    }  # fmt: skip
    assert found == set(expected)


def test_the_clients_metrics_are_averaged(finished: Finished, events: Events) -> None:
    for model in MODELS:
        answers = [a for a in finished.events.arguments("client_answered") if a[0] == model]
        points = curve(events[model], "3 training/mean of clients/train/loss")
        for round_, mean in points:
            values = [metrics["train/loss"] for _, r, _, metrics in answers if r == round_]
            assert len(values) == 4
            assert mean == pytest.approx(sum(values) / 4)
        assert [step for step, _ in points] == [1, 2]


def test_a_chart_shows_a_metric_of_all_clients(events: Events) -> None:
    layout = charts(events[""])
    assert layout["Attacks"] == {"cost of each victim by iteration": [r"5\ victims/cost\ of\ "]}
    (pattern,) = layout["Clients"]["train/loss of each client by round"]
    tags = [tag for tag in events["smlp"].Tags()["scalars"] if re.match(pattern, tag)]
    assert sorted(tags) == [f"4 clients/train/loss/client {client}" for client in range(4)]
    (costs,) = layout["Attacks"]["cost of each victim by iteration"]
    found = events["nra on smlp+precode"].Tags()["scalars"]
    assert len([tag for tag in found if re.match(costs, tag)]) == 8
    metrics = {tag.split("/", 1)[1].rsplit("/", 1)[0] for tag in clients_tags(events)}
    assert set(layout["Clients"]) == {f"{metric} of each client by round" for metric in metrics}


def clients_tags(events: Events) -> set[str]:
    tags = {tag for model in MODELS for tag in events[model].Tags()["scalars"]}
    return {tag for tag in tags if tag.startswith("4 clients/")}


def test_what_each_defence_did_by_client_and_averaged(tmp_path: Path) -> None:
    config = tiny_config(
        tiny_data(tmp_path), tmp_path / "run", clients=3, rounds=2,
        defenses=(
            Plugin("fedleak.defenses.pruning.Pruning", {"ratio": 0.5}),
            Plugin("fedleak.defenses.clipping.Clipping", {"max_norm": 1e6}),
        ),
    )  # fmt: skip
    recorder = Recorder()
    experiment.run(config, [TensorBoard(config, *SCALING), recorder])
    found = read_events(tmp_path / "run" / "tensorboard")["smlp"]
    for figure in ("norm", "sparsity", "snr_db"):
        name = f"defense/pruning/{figure}"
        each = {c: curve(found, f"4 clients/{name}/client {c}") for c in range(3)}
        for _, round_, client, metrics in recorder.arguments("client_answered"):
            assert each[client][round_ - 1] == (round_, pytest.approx(metrics[name], rel=1e-5))
        mean = [sum(each[c][i][1] for c in each) / 3 for i in range(2)]
        averaged = curve(found, f"3 training/mean of clients/{name}")
        assert averaged == [(i + 1, pytest.approx(mean[i], rel=1e-5)) for i in range(2)]
    # The bound is far away: nothing is clipped, and the update is as it was before.
    endless = [(1, math.inf), (2, math.inf)]
    assert curve(found, "4 clients/defense/clipping/snr_db/client 0") == endless
    assert curve(found, "3 training/mean of clients/defense/clipping/snr_db") == endless


def test_a_mean_leaves_out_clients_whose_update_was_not_changed(tmp_path: Path) -> None:
    config = tiny_config(tiny_data(tmp_path), tmp_path / "run")
    board = TensorBoard(config, *SCALING)
    for client, value in enumerate([10.0, math.inf, 30.0]):
        board.client_answered("smlp", 1, client, {"defense/clipping/snr_db": value})
    board.round_evaluated("smlp", 1, {})
    board.run_ended("interrupted")
    found = read_events(tmp_path / "run" / "tensorboard")["smlp"]
    assert curve(found, "3 training/mean of clients/defense/clipping/snr_db") == [(1, 20.0)]
    assert curve(found, "4 clients/defense/clipping/snr_db/client 1") == [(1, math.inf)]


# ------------------------------------------------------------------- configuration, hyperparameters


def test_the_configuration_is_there_as_text(finished: Finished, events: Events) -> None:
    text = text_of(events[""], "config")
    assert text.startswith("```yaml\n")
    assert "bottleneck_size: 6" in text
    assert f"output: {finished.config.output}" in text


def test_each_attack_on_a_model_is_a_line_of_results(finished: Finished, events: Events) -> None:
    names = ("ssim", "psnr", "mse", "asr")
    for entry in finished.summary["attacks"]:
        found = events[f"{entry['attack']} on {entry['model']}"]
        settings, metrics = result_line(found)
        assert settings == {
            "attack": entry["attack"], "data": "tiny", "defense": "none", "model": entry["model"],
            "number of clients": 4, "number of rounds": 2, "protocol": "fedsgd",
            "samples per batch": 2, "seed": 0, "strategy": "FedAvg",
            "threat model": "honest-but-curious server",
            "victims' labels": "known",
        }  # fmt: skip
        assert metrics == {f"6 results/{name}" for name in (*names, "explained", "accuracy")}
        for name in names:
            assert curve(found, f"6 results/{name}") == [(0, pytest.approx(entry[name]))]
        trained = curve(events[entry["model"]], "3 training/global model/test/accuracy")
        assert curve(found, "6 results/accuracy") == [(0, trained[-1][1])]
    accuracy = finished.summary["federation"]["accuracy"]
    ours = curve(events["nra on smlp+precode"], "6 results/accuracy")
    assert ours == [(0, pytest.approx(accuracy))]


def test_an_attack_on_saved_updates_tells_the_accuracy_of_their_federation(
    finished: Finished, tmp_path: Path
) -> None:
    config = replace(
        finished.config, output=str(tmp_path / "again"), attacks=(attack_plugin("nra"),)
    )
    experiment.attack_run(finished.folder.path, config, [TensorBoard(config, *SCALING)])
    found = read_events(tmp_path / "again" / "tensorboard")
    assert set(found) == {"", "nra on smlp+precode"}
    accuracy = finished.summary["federation"]["accuracy"]
    ours = curve(found["nra on smlp+precode"], "6 results/accuracy")
    assert ours == [(0, pytest.approx(accuracy))]


def test_a_model_that_was_not_attacked_is_a_line_too(tmp_path: Path) -> None:
    found = run_with(tiny_config(tiny_data(tmp_path), tmp_path / "run"))
    assert set(found) == {"", "smlp"}
    settings, metrics = result_line(found["smlp"])
    assert (settings["attack"], settings["model"]) == ("none", "smlp")
    assert "6 results/accuracy" in metrics
    trained = curve(found["smlp"], "3 training/global model/test/accuracy")
    assert curve(found["smlp"], "6 results/accuracy") == [(0, trained[-1][1])]


# --------------------------------------------------------------------------------- interrupted runs


def test_a_resumed_run_goes_on_in_the_same_curves(tmp_path: Path) -> None:
    config = tiny_config(
        tiny_data(tmp_path), tmp_path / "run", rounds=2, victim_clients=[0, 1],
        attacks=(attack_plugin("iga", at_once=1),),
    )  # fmt: skip
    counted: list[int] = []

    def third(*_: Any) -> None:
        counted.append(1)
        if len(counted) == 3:
            interrupt()

    observers = [TensorBoard(config, *SCALING), Recorder("victim_attacked", third)]
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, observers)
    halfway = read_events(tmp_path / "run" / "tensorboard")
    assert len(halfway[""].Images(PICTURES)) == 3
    assert "_hparams_/session_start_info" not in halfway["iga on smlp"].summary_metadata
    whole = run_with(config, resume=True)
    attack = whole["iga on smlp"]
    assert [step for step, _ in curve(attack, "2 attacks/ssim by victim")] == list(range(8))
    training = curve(whole["smlp"], "3 training/global model/test/loss")
    assert [step for step, _ in training] == [0, 1, 2]
    assert [image.step for image in whole[""].Images(PICTURES)] == list(range(4))
    assert text_of(whole[""], "config").startswith("```yaml\n")
    assert "train/loss of each client by round" in charts(whole[""])["Clients"]
    assert "_hparams_/session_start_info" in attack.summary_metadata
    # Of all four victims, three of which were attacked before the interruption.
    costs = [dict(curve(attack, f"5 victims/cost of {key}")) for key in keys(config)]
    expected = [(i, pytest.approx(np.median([c[i] for c in costs]))) for i in (0, 10)]
    assert curve(attack, "2 attacks/cost (median of victims)") == expected


def keys(config: RunConfig) -> list[str]:
    rows = read_rows(RunFolder(Path(config.output)).results)
    return sorted({f"r{row['round']:04d}-c{row['client']:04d}" for row in rows})


def test_a_resumed_runs_event_file_is_read_after_the_ones_before(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "tensorboard" / "smlp"
    folder.mkdir(parents=True)
    # Of this second, and last by what follows it in the name.
    before = folder / f"events.out.tfevents.{int(time.time()):010d}.~.1.9"
    before.touch()
    board = TensorBoard(tiny_config(tiny_data(tmp_path), tmp_path / "run"), *SCALING)
    board.round_evaluated("smlp", 1, {"test/loss": 1.0})
    assert sorted(folder.iterdir())[0] == before
    assert len(list(folder.iterdir())) == 2


def test_a_refused_run_leaves_no_event_files(finished: Finished) -> None:
    before = sorted(finished.folder.path.rglob("*"))
    board = TensorBoard(finished.config, *SCALING)
    figures = Figures(finished.config, *SCALING)
    with pytest.raises(ValueError, match="--resume"):
        experiment.run(finished.config, [board, figures])
    assert sorted(finished.folder.path.rglob("*")) == before
