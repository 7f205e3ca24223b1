"""Event files, read back by TensorBoard's own reader."""

import io
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from fedleak import experiment
from fedleak.registry import Plugin
from fedleak.reporting import (
    Figures,
    TensorBoard,
)
from fedleak.reporting.panels import read_panels
from fedleak.runs.results import read_rows
from fedleak.runs.summary import summarise_rounds
from tests.federation.runs import (
    Finished,
    Recorder,
    attack_plugin,
    finished_run,
    in_process,
    interrupt,
    tiny_config,
    tiny_data,
)

SCALING = (0.0,), (1.0,)
PAIRS = [("iga", "smlp"), ("iga", "smlp+precode"), ("nra", "smlp+precode")]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(tmp_path_factory)


@pytest.fixture(autouse=True)
def _in_process() -> Iterator[None]:
    with in_process():
        yield


def read_events(folder: Path) -> EventAccumulator:
    """Everything in a folder's event files, by TensorBoard's own reader."""
    everything = dict.fromkeys(("scalars", "images", "tensors"), 0)
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


@pytest.fixture(scope="session")
def events(finished: Finished) -> EventAccumulator:
    return read_events(finished.folder.tensorboard)


def curve(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_training_curves_of_clients_and_of_the_global_model(
    finished: Finished, events: EventAccumulator
) -> None:
    expected: dict[str, list[tuple[int, float]]] = {}
    for model, round_, client, metrics in finished.events.arguments("client_answered"):
        for name, value in metrics.items():
            expected.setdefault(f"{model}/client {client}/{name}", []).append((round_, value))
    for model, round_, metrics in finished.events.arguments("round_evaluated"):
        for name, value in metrics.items():
            expected.setdefault(f"{model}/global/{name}", []).append((round_, value))
    assert "smlp/client 3/train/loss" in expected
    assert "smlp+precode/global/test/accuracy" in expected
    for tag, points in expected.items():
        assert curve(events, tag) == [(step, pytest.approx(value)) for step, value in points]
    assert [step for step, _ in curve(events, "smlp/global/test/loss")] == [0, 1, 2]
    curves = {tag for tag in events.Tags()["scalars"] if "/client " in tag or "/global/" in tag}
    assert curves == set(expected)


def test_the_clients_metrics_are_averaged(finished: Finished, events: EventAccumulator) -> None:
    for model in ("smlp", "smlp+precode"):
        answers = [a for a in finished.events.arguments("client_answered") if a[0] == model]
        for round_, mean in curve(events, f"{model}/clients/train/loss"):
            values = [metrics["train/loss"] for _, r, _, metrics in answers if r == round_]
            assert len(values) == 4
            assert mean == pytest.approx(sum(values) / 4)
        assert [step for step, _ in curve(events, f"{model}/clients/train/loss")] == [1, 2]


def test_what_each_defence_did_by_client_and_averaged(tmp_path: Path) -> None:
    config = tiny_config(
        tiny_data(tmp_path), tmp_path / "run", clients=3, rounds=2,
        defenses=(
            Plugin("fedleak.defenses.pruning.Pruning", {"ratio": 0.5}),
            Plugin("fedleak.defenses.clipping.Clipping", {"max_norm": 1e6}),
        ),
    )  # fmt: skip
    recorder = Recorder()
    with in_process():
        experiment.run(config, [TensorBoard(config, *SCALING), recorder])
    found = read_events(tmp_path / "run" / "tensorboard")
    for figure in ("norm", "sparsity", "snr_db"):
        name = f"defense/pruning/{figure}"
        each = {c: curve(found, f"smlp/client {c}/{name}") for c in range(3)}
        for _, round_, client, metrics in recorder.arguments("client_answered"):
            assert each[client][round_ - 1] == (round_, pytest.approx(metrics[name], rel=1e-5))
        mean = [sum(each[c][i][1] for c in each) / 3 for i in range(2)]
        averaged = curve(found, f"smlp/clients/{name}")
        assert averaged == [(i + 1, pytest.approx(mean[i], rel=1e-5)) for i in range(2)]
    # The bound is far away: nothing is clipped, and the update is as it was before.
    endless = [(1, math.inf), (2, math.inf)]
    assert curve(found, "smlp/client 0/defense/clipping/snr_db") == endless
    assert curve(found, "smlp/clients/defense/clipping/snr_db") == endless


def test_a_mean_leaves_out_clients_whose_update_was_not_changed(tmp_path: Path) -> None:
    config = tiny_config(tiny_data(tmp_path), tmp_path / "run")
    board = TensorBoard(config, *SCALING)
    for client, value in enumerate([10.0, math.inf, 30.0]):
        board.client_answered("smlp", 1, client, {"defense/clipping/snr_db": value})
    board.round_evaluated("smlp", 1, {})
    board._writer.close()
    found = read_events(tmp_path / "run" / "tensorboard")
    assert curve(found, "smlp/clients/defense/clipping/snr_db") == [(1, 20.0)]
    assert curve(found, "smlp/client 1/defense/clipping/snr_db") == [(1, math.inf)]


def test_attack_cost_against_iteration(finished: Finished, events: EventAccumulator) -> None:
    attacked = finished.events.arguments("victim_attacked")
    assert len(attacked) == 3 * 8
    for attack, model, update, _, reconstruction, _ in attacked:
        points = curve(events, f"{model}/{attack}/cost/{update.key}")
        assert [step for step, _ in points] == [0, 10]
        assert points == [(step, pytest.approx(cost)) for step, cost in reconstruction.costs]


def test_ssim_by_victim(finished: Finished, events: EventAccumulator) -> None:
    rows = read_rows(finished.folder.results)
    for attack, model in PAIRS:
        mine = [row["ssim"] for row in rows if (row["attack"], row["model"]) == (attack, model)]
        points = curve(events, f"{model}/{attack}/ssim")
        assert points == [(step, pytest.approx(ssim)) for step, ssim in enumerate(mine)]
        by_round = [
            (entry["round"], pytest.approx(entry["ssim"])) for entry in summarise_rounds(rows)
            if (entry["attack"], entry["model"]) == (attack, model)
        ]  # fmt: skip
        assert curve(events, f"{model}/{attack}/ssim by round") == by_round
        assert len(points) == 16


def test_image_grids_have_a_step_for_every_victim(
    finished: Finished, events: EventAccumulator
) -> None:
    assert events.Tags()["images"] == ["reconstructions"]
    images = events.Images("reconstructions")
    assert [image.step for image in images] == list(range(16))
    data = _data(finished)
    panels = read_panels(finished.folder, finished.config, *data)
    for image, panel in zip(images, panels, strict=True):
        assert (image.width, image.height) == (4 * 8 + 3 * 2, 8)
        pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        cells = [pixels[:, 10 * i : 10 * i + 8] for i in range(4)]
        assert panel.original is not None
        shown = [panel.original, *[p for p, _ in panel.reconstructions.values()]]
        for cell, picture in zip(cells, shown, strict=True):
            assert np.array_equal(cell, np.repeat(picture[..., None], 3, axis=2))
        assert (pixels[:, 8:10] == 255).all()


def _data(finished: Finished) -> tuple[tuple[float, ...], tuple[float, ...]]:
    from fedleak.build import make_data

    data = make_data(finished.config)
    return data.mean, data.std


def test_the_configuration_stands_there_as_text(
    finished: Finished, events: EventAccumulator
) -> None:
    assert "config/text_summary" in events.Tags()["tensors"]
    (event,) = events.Tensors("config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert text.startswith("```yaml\n")
    assert "bottleneck_size: 6" in text
    assert f"output: {finished.config.output}" in text


def test_hyperparameters_with_the_final_metrics(
    finished: Finished, events: EventAccumulator
) -> None:
    contents = events.summary_metadata
    plugin = HParamsPluginData.FromString(
        contents["_hparams_/session_start_info"].plugin_data.content
    )
    settings = plugin.session_start_info.hparams
    assert settings["model"].string_value == "smlp+precode"
    assert settings["protocol"].string_value == "fedsgd"
    assert settings["batch_size"].number_value == 2
    experiment_ = HParamsPluginData.FromString(contents["_hparams_/experiment"].plugin_data.content)
    tags = {info.name.tag for info in experiment_.experiment.metric_infos}
    for entry in finished.summary["attacks"]:
        for name in ("ssim", "psnr", "mse", "asr"):
            tag = f"hparam/{name} {entry['attack']} on {entry['model']}"
            assert tag in tags
            assert curve(events, tag) == [(0, pytest.approx(entry[name]))]
    accuracy = finished.summary["federation"]["accuracy"]
    assert curve(events, "hparam/accuracy") == [(0, pytest.approx(accuracy))]


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
    assert len(halfway.Images("reconstructions")) == 6
    assert "_hparams_/session_start_info" not in halfway.summary_metadata
    experiment.run(config, [TensorBoard(config, *SCALING)], resume=True)
    whole = read_events(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in curve(whole, "smlp/iga/ssim")] == list(range(8))
    assert [step for step, _ in curve(whole, "smlp/global/test/loss")] == [0, 1, 2]
    assert [image.step for image in whole.Images("reconstructions")] == list(range(8))
    assert len(whole.Tensors("config/text_summary")) == 1
    assert "_hparams_/session_start_info" in whole.summary_metadata


def test_a_resumed_runs_event_file_is_read_after_the_ones_before(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "tensorboard"
    folder.mkdir(parents=True)
    # Of this second, and last by what follows it in the name.
    before = folder / f"events.out.tfevents.{int(time.time()):010d}.~.1.9"
    before.touch()
    board = TensorBoard(tiny_config(tiny_data(tmp_path), tmp_path / "run"), *SCALING)
    board.round_evaluated("smlp", 1, {"test/loss": 1.0})
    assert sorted(folder.iterdir())[0] == before
    assert len(list(folder.iterdir())) == 2


def test_a_refused_run_leaves_no_event_files(finished: Finished, tmp_path: Path) -> None:
    before = sorted(finished.folder.path.rglob("*"))
    board = TensorBoard(finished.config, *SCALING)
    figures = Figures(finished.config, *SCALING)
    with pytest.raises(ValueError, match="--resume"):
        experiment.run(finished.config, [board, figures])
    assert sorted(finished.folder.path.rglob("*")) == before
