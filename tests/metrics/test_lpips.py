"""The optional column ``lpips``, from AlexNet's weights to the tables.

The real weights are no part of fedleak, so a file of random ones stands in for them.
"""

import csv
import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
import yaml
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn import functional
from torchvision.models import alexnet

from fedleak import experiment
from fedleak.attacks import Reconstruction
from fedleak.config import Metrics, RunConfig
from fedleak.data import ImageData, ImageSet
from fedleak.errors import BadInput
from fedleak.metrics import Lpips, require_alexnet, score_images
from fedleak.metrics.lpips import _lpips_network
from fedleak.registry import Plugin
from fedleak.reporting import TensorBoard, results_table, write_report, write_tables
from fedleak.runs.folder import Row, RunFolder
from fedleak.runs.results import (
    COLUMNS,
    Recorder,
    append_rows,
    read_columns,
    read_rows,
    repair_results,
)
from fedleak.runs.scoring import ImageScoring
from fedleak.runs.summary import summarise, write_summary
from fedleak.sweep import SweepFolder, expand, load_study, run_sweep
from fedleak.sweep.study import study_hash
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate
from tests.cases import pictures
from tests.federation.runs import Finished, attack_plugin, finished_run
from tests.federation.runs import Recorder as Events

ALL = (*COLUMNS, "lpips")
RECORDED = (*ALL, "label_accuracy", "explained")
FILE = "alexnet-owt-7be5be79.pth"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TORCH_HOME with random weights of AlexNet."""
    home = tmp_path_factory.mktemp("hub")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = alexnet(weights=None).state_dict()
    # LPIPS has no use for the classifier, whose 220 MB of noise need not be written.
    for name, value in state.items():
        if name.startswith("classifier"):
            state[name] = torch.zeros(1).expand(value.shape)
    (home / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, home / "hub" / "checkpoints" / FILE)
    return home


@pytest.fixture
def weights(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(hub))
    return require_alexnet()


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TORCH_HOME without weights, and no way to fetch any."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    return tmp_path / "home" / "hub" / "checkpoints" / FILE


def picture(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return pictures(1, shape, seed=seed)[0].numpy()


def literal(left: Tensor, right: Tensor, weights: Path) -> float:
    """LPIPS as its paper has it: features, normalised in each place, their weighted distance."""
    state = torch.load(weights, weights_only=True, map_location="cpu")
    folder = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models"
    linear = torch.load(folder / "alex.pth", weights_only=True, map_location="cpu")
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(3, 1, 1)

    def features(image: Tensor) -> list[Tensor]:
        value = ((2 * image - 1 - shift) / scale)[None].double()
        found = []
        # Layer, stride, padding, whether the pooling comes before it.
        for layer, stride, padding, pool in (
            (0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False),
        ):  # fmt: skip
            if pool:
                value = functional.max_pool2d(value, 3, 2)
            kernel, bias = (state[f"features.{layer}.{n}"].double() for n in ("weight", "bias"))
            value = functional.conv2d(value, kernel, bias, stride, padding).relu()
            found.append(value[0] / value[0].norm(dim=0).clamp(min=1e-12))
        return found

    total = 0.0
    for number, (one, other) in enumerate(zip(features(left), features(right), strict=True)):
        weight = linear[f"lin{number}.model.1.weight"].double().reshape(-1, 1, 1)
        total += float((weight * (one - other) ** 2).sum(dim=0).mean())
    return total


# ------------------------------------------------------------------------------------ the number


@pytest.mark.parametrize("shape", [(3, 31, 31), (3, 32, 32), (3, 64, 48)], ids=str)
def test_against_the_papers_formula(shape: tuple[int, int, int], weights: Path) -> None:
    left, right = picture(shape), picture(shape, seed=1)
    expected = literal(torch.from_numpy(left).float(), torch.from_numpy(right).float(), weights)
    assert expected > 1e-4
    assert Lpips()(left, right) == pytest.approx(expected, rel=1e-3)
    assert Lpips()(right, left) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 6), (1, 31, 31), (3, 40, 33)], ids=str)
def test_zero_for_equal_images(shape: tuple[int, int, int], weights: Path) -> None:
    lpips, left = Lpips(), picture(shape)
    assert lpips(left, left.copy()) == 0
    near = np.clip(left + 0.02 * np.random.default_rng(0).normal(size=shape), 0, 1)
    assert 0 < lpips(left, near) < lpips(left, picture(shape, seed=1))


def test_grey_is_a_colour_of_equal_channels(weights: Path) -> None:
    left, right = picture((1, 32, 32)), picture((1, 32, 32), seed=1)
    colour = [image.repeat(3, axis=0) for image in (left, right)]
    assert Lpips()(left, right) == Lpips()(*colour)


@pytest.mark.parametrize(
    ("shape", "size"), [((3, 8, 8), (31, 31)), ((3, 30, 60), (31, 62)), ((3, 40, 10), (124, 31))]
)
def test_small_images_are_scaled_up(
    shape: tuple[int, int, int], size: tuple[int, int], weights: Path
) -> None:
    left, right = (torch.from_numpy(picture(shape, seed)).float() for seed in (0, 1))
    large = [
        functional.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        for image in (left, right)
    ]
    expected = literal(*large, weights)
    assert Lpips()(left.double().numpy(), right.double().numpy()) == pytest.approx(
        expected, rel=1e-3
    )


@pytest.mark.parametrize("side", [3, 7, 11, 28])
def test_black_and_white_stay_in_the_range(side: int, weights: Path) -> None:
    """Scaling up may round beyond it, which torchmetrics refuses."""
    white, black = np.ones((3, side, side)), np.zeros((3, side, side))
    assert Lpips()(white, black) > 0
    assert Lpips()(white, white) == 0


def test_not_a_number(weights: Path) -> None:
    left, right = picture((1, 8, 8)), picture((1, 8, 8), seed=1)
    right[0, 2, 2] = math.nan
    assert math.isnan(Lpips()(left, right))


def test_other_channels(weights: Path) -> None:
    with pytest.raises(BadInput, match=r"1 or 3 channels for `metrics.lpips`, got 2: leave it out"):
        Lpips()(picture((2, 8, 8)), picture((2, 8, 8)))


def test_torchs_random_state_is_unchanged(weights: Path) -> None:
    state = torch.random.get_rng_state()
    _lpips_network.cache_clear()
    Lpips()
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("space", ["pixels", "normalised"])
def test_of_a_batch_on_pixels_and_after_the_matching(space: Any, weights: Path) -> None:
    images = torch.cat([pictures(1, (3, 32, 32), seed=seed) for seed in range(3)]).float()
    labels = torch.zeros(3, dtype=torch.long)
    rough = images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    order = [2, 0, 1]
    mean, std = (0.5,) * 3, (0.2,) * 3
    scores = score_images(
        GroundTruth((images - 0.5) / 0.2, labels),
        Reconstruction(((rough - 0.5) / 0.2)[order], labels),
        mean=mean, std=std, space=space, lpips=Lpips(),
    )  # fmt: skip
    for item, left, right in zip(scores, images, rough, strict=True):
        assert item.lpips == pytest.approx(literal(left, right.clamp(0, 1), weights), rel=1e-3)


def test_left_out_unless_it_is_asked_for() -> None:
    images, labels = pictures(1, (3, 8, 8)), torch.zeros(1, dtype=torch.long)
    (item,) = score_images(
        GroundTruth(images, labels), Reconstruction(images, labels), mean=(0.0,), std=(1.0,)
    )
    assert item.lpips is None


# ----------------------------------------------------------------------------------- the weights


def test_no_weights(nowhere: Path) -> None:
    with pytest.raises(BadInput, match=rf"AlexNet's weights .* at {nowhere}, found none: fetch"):
        Lpips()


@pytest.mark.parametrize("content", [b"", b"no weights", "other"], ids=["empty", "text", "other"])
def test_damaged_weights(content: Any, nowhere: Path) -> None:
    nowhere.parent.mkdir(parents=True)
    if content == "other":
        torch.save({"layer.weight": torch.zeros(2)}, nowhere)
    else:
        nowhere.write_bytes(content)
    with pytest.raises(BadInput, match=rf"at {nowhere}, got a file that cannot be read as such"):
        Lpips()


# ------------------------------------------------------------------------------------- the files


def row(client: int = 0, **values: Any) -> Row:
    return {
        "round": 1, "client": client, "sample": 0, "attack": "iga", "defense": "none",
        "model": "smlp", "dataset": "photos", "batch_size": 1, "mse": 0.5, "psnr": 3.0,
        "ssim": 0.25, "success": 0, "noise_mse": 1.5, "cost": 0.125, "iterations": 7,
        "seconds": 2.0,
    } | values  # fmt: skip


def test_one_more_column(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    rows = [row(0, lpips=0.5), row(1, lpips=None), row(2, lpips=math.inf)]
    append_rows(path, rows[:1])
    append_rows(path, rows[1:])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == ",".join(ALL)
    assert [line.rpartition(",")[2] for line in lines[1:]] == ["0.5", "", "inf"]
    assert read_columns(path) == ALL
    assert read_rows(path) == rows


def test_a_file_keeps_its_columns(tmp_path: Path) -> None:
    append_rows(tmp_path / "plain.csv", [row()])
    with pytest.raises(ValueError, match="lpips"):
        append_rows(tmp_path / "plain.csv", [row(lpips=0.5)])
    append_rows(tmp_path / "wide.csv", [row(lpips=0.5)])
    append_rows(tmp_path / "wide.csv", [row(1)])
    assert [found["lpips"] for found in read_rows(tmp_path / "wide.csv")] == [0.5, None]


def test_a_file_truncated_anywhere_keeps_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    rows = [
        row(client, sample=sample, batch_size=2, lpips=0.5)
        for client in (0, 1)
        for sample in (0, 1)
    ]
    append_rows(path, rows)
    whole = path.read_bytes()
    breaks = [end + 1 for end, byte in enumerate(whole) if byte == ord("\n")]
    kept = {0: 0, 1: 0, 2: 2, 3: 2, 4: 4}  # rows written -> rows of whole updates
    for written, end in enumerate(breaks):
        path.write_bytes(whole[: end + (3 if written < 4 else 0)])
        repair_results(path)
        assert read_columns(path) == ALL
        assert read_rows(path) == rows[: kept[written]]
        append_rows(path, rows[kept[written] :])
        assert path.read_bytes() == whole


def test_mean_of_the_summary() -> None:
    (entry,) = summarise([row(lpips=0.5), row(1, lpips=0.25), row(2, lpips=None)])
    assert entry["lpips"] == pytest.approx(0.375)
    assert list(entry)[-3:] == ["seconds", "lpips", "unsupported"]
    assert summarise([row(lpips=None)])[0]["lpips"] is None
    (entry,) = summarise([row(lpips=math.nan)])
    json.dumps(entry, allow_nan=False)
    assert "lpips" not in summarise([row()])[0]


# --------------------------------------------------------------------------------------- the run


def config(tmp_path: Path, **settings: Any) -> RunConfig:
    return RunConfig(
        data=Plugin("fedleak.data.photos.Photos"), model=Plugin("fedleak.models.mlp.SMLP"),
        output=str(tmp_path / "run"), metrics=Metrics(lpips=True), **settings,
    )  # fmt: skip


@pytest.mark.parametrize("known", [True, False])
def test_rows_of_an_update(known: bool, tmp_path: Path, weights: Path) -> None:
    settings, folder = config(tmp_path), RunFolder(tmp_path / "run")
    folder.open(settings, resume=False, overwrite=False)
    images = torch.cat([pictures(1, (3, 32, 32), seed=seed) for seed in range(2)]).float()
    labels = torch.tensor([0, 1])
    rough = (images + 0.05).clamp(0, 1)
    update = InterceptedUpdate(1, 0, "fedsgd", 2, "smlp", {}, {})
    recorder = Recorder(folder, settings, ImageScoring(settings.metrics, (0.0,) * 3, (1.0,) * 3))
    truth = GroundTruth(images, labels) if known else None
    rows = recorder.record("iga", update, truth, Reconstruction(rough, labels))
    assert read_columns(folder.results) == RECORDED
    found = [item["lpips"] for item in read_rows(folder.results)]
    assert found == [item["lpips"] for item in rows]
    if known:
        expected = [literal(*pair, weights) for pair in zip(images, rough, strict=True)]
        assert found == pytest.approx(expected, rel=1e-2)
    else:
        assert found == [None, None]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(tmp_path_factory)


def again(finished: Finished, output: Path, **settings: Any) -> RunConfig:
    return replace(
        finished.config, attacks=(attack_plugin("iga"),), output=str(output),
        metrics=Metrics(lpips=True), **settings,
    )  # fmt: skip


def test_a_whole_attack(finished: Finished, tmp_path: Path, weights: Path) -> None:
    settings = again(finished, tmp_path / "out")
    summary = experiment.attack_run(finished.folder.path, settings)
    rows = read_rows(tmp_path / "out" / "results.csv")
    assert read_columns(tmp_path / "out" / "results.csv") == RECORDED
    assert all(item["lpips"] > 0 for item in rows)
    bare = experiment.attack_run(
        finished.folder.path, replace(settings, metrics=Metrics(), output=str(tmp_path / "bare"))
    )
    assert read_columns(tmp_path / "bare" / "results.csv") == (
        *COLUMNS,
        "label_accuracy",
        "explained",
    )
    # The other columns do not notice.
    same = [name for name in COLUMNS if name not in ("seconds", "noise_mse")]
    for left, right in zip(rows, read_rows(tmp_path / "bare" / "results.csv"), strict=True):
        assert [left[name] for name in same] == [right[name] for name in same]
    for entry, plain in zip(summary["attacks"], bare["attacks"], strict=True):
        members = [item["lpips"] for item in rows if item["model"] == entry["model"]]
        assert entry["lpips"] == pytest.approx(np.mean(members))
        assert "lpips" not in plain

    console = Console(width=80, record=True, file=io.StringIO())
    for found in (summary, bare):
        console.print(results_table(found, settings))
    wide, plain_text = console.export_text().split("What the updates leak")[1:]
    assert "LPIPS" in wide
    assert f"{summary['attacks'][0]['lpips']:.4f}" in wide
    assert "LPIPS" not in plain_text
    # The page is made of both kinds of file.
    pages = {
        name: write_report(RunFolder(tmp_path / name)).read_text(encoding="utf-8")
        for name in ("out", "bare")
    }
    for entry in summary["attacks"]:
        assert f">{entry['lpips']:.4f} ± " in pages["out"]
    assert "LPIPS" not in pages["bare"]


def test_tensorboard_shows_it(tmp_path: Path, weights: Path) -> None:
    settings = config(tmp_path)
    folder = RunFolder(tmp_path / "run")
    folder.open(settings, resume=False, overwrite=False)
    board = TensorBoard(settings, (0.0,) * 3, (1.0,) * 3)
    update = InterceptedUpdate(1, 0, "fedsgd", 1, "smlp", {}, {})
    truth = GroundTruth(pictures(1, (3, 32, 32), seed=0).float(), torch.tensor([0]))
    found = Reconstruction((truth.inputs + 0.05).clamp(0, 1), truth.labels)
    scoring = ImageScoring(settings.metrics, (0.0,) * 3, (1.0,) * 3)
    rows = Recorder(folder, settings, scoring).record("iga", update, truth, found)
    board.victim_attacked("iga", "smlp", update, truth, found, rows)
    federation = {"rounds": 1, "clients": 1, "failures": 0, "accuracy": None}
    write_summary(folder, settings, "complete", federation, {})
    board.run_ended("complete")
    events = EventAccumulator(str(folder.tensorboard / "iga on smlp")).Reload()
    for tag in ("2 attacks/lpips by victim", "6 results/lpips"):
        assert [event.value for event in events.Scalars(tag)] == pytest.approx([rows[0]["lpips"]])


def test_an_interrupted_attack_continues(finished: Finished, tmp_path: Path, weights: Path) -> None:
    settings = again(finished, tmp_path / "out")
    experiment.attack_run(finished.folder.path, settings)
    results = tmp_path / "out" / "results.csv"
    before = read_rows(results)
    results.write_text("\n".join(results.read_text().splitlines()[:4]) + "\n1,2", "utf-8")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    (tmp_path / "out" / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
    experiment.attack_run(finished.folder.path, settings, resume=True)
    assert read_columns(results) == RECORDED
    assert [item["lpips"] for item in read_rows(results)] == [item["lpips"] for item in before]


def test_no_score_without_ground_truth(finished: Finished, tmp_path: Path, weights: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(finished.folder.path, bare)
    shutil.rmtree(bare / "truth")
    victims = replace(finished.config.victims, labels="bias_counts")
    settings, events = again(finished, tmp_path / "out", victims=victims), Events()
    summary = experiment.attack_run(bare, settings, [events])
    assert {item["lpips"] for item in read_rows(tmp_path / "out" / "results.csv")} == {None}
    assert [entry["lpips"] for entry in summary["attacks"]] == [None, None]


def test_nothing_is_written_without_weights(
    finished: Finished, tmp_path: Path, nowhere: Path
) -> None:
    with pytest.raises(BadInput, match=rf"weights for `metrics.lpips` at {nowhere}, found none"):
        experiment.attack_run(finished.folder.path, again(finished, tmp_path / "out"))
    with pytest.raises(BadInput, match=rf"weights for `metrics.lpips` at {nowhere}, found none"):
        experiment.run(again(finished, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert not nowhere.exists()


class Pairs(ImageData):
    """Images of two channels, as no data set of fedleak's own has them."""

    def load(self) -> tuple[ImageSet, ImageSet]:
        part = ImageSet(
            pictures(8, (2, 8, 8)).float(), torch.arange(8) % 2, mean=(0.5,) * 2, std=(0.2,) * 2
        )
        return part, part


def test_channels_are_checked_first(tmp_path: Path, weights: Path) -> None:
    settings = replace(config(tmp_path), data=Plugin("tests.metrics.test_lpips.Pairs"))
    with pytest.raises(BadInput, match=r"1 or 3 channels for `metrics.lpips`, got 2"):
        experiment.run(settings)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------- the sweep


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    base = {"data": "photos", "model": "smlp", "federation": {"clients": 2}}
    grid = {"metrics.lpips": [True, False]}
    path.write_text(yaml.safe_dump({"base": base, "grid": grid}), encoding="utf-8")
    return path


@pytest.fixture
def swept(tmp_path: Path, study: Path) -> SweepFolder:
    """A sweep's folder, the rows of one cell with LPIPS, those of the other without."""
    folder, loaded = SweepFolder(tmp_path / "out"), load_study(study)
    cells = expand(loaded)
    with folder.open(loaded, cells, study_hash(cells), resume=False, overwrite=False):
        for cell in cells:
            run = folder.run(cell.name)
            run.open(cell.config, resume=False, overwrite=False)
            more = {"lpips": 0.125} if cell.config.metrics.lpips else {}
            append_rows(run.results, [row(client, **more) for client in (0, 1)])
        folder.write_results(cells)
    folder.write_summary({"status": "complete", "study_hash": study_hash(cells), "cells": []})
    return folder


def test_a_sweep_of_both_kinds(swept: SweepFolder) -> None:
    with swept.results.open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == ("cell", *ALL)
        assert [item["lpips"] for item in reader] == ["0.125", "0.125", "", ""]
    readable, plain = write_tables(swept.path)
    with plain.open(newline="") as file:
        assert [item["lpips_mean"] for item in csv.DictReader(file)] == ["0.125", ""]
    lines = readable.read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[-2].strip() for line in lines if line.startswith("|")] == [
        "LPIPS", "---:", "0.1250", "-",
    ]  # fmt: skip


def test_a_sweep_needs_the_weights_too(tmp_path: Path, study: Path, nowhere: Path) -> None:
    with pytest.raises(BadInput, match=rf"weights for `metrics.lpips` at {nowhere}, found none"):
        run_sweep(load_study(study), tmp_path / "out")
    assert not (tmp_path / "out").exists()
