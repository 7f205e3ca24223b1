"""The studies of accuracy and of the defences' levels: their scripts, and their smoke studies."""

import csv
import importlib
import json
import tarfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from fedleak.data import Npz
from fedleak.sweep import Cell, expand, load_study, run_sweep
from tests.experiments.studies import CellHere

ROOT = Path(__file__).resolve().parents[2]
ACCURACY = ROOT / "experiments" / "accuracy"
LEVELS = ROOT / "experiments" / "precode-image"
CLASSES = ("cat", "dog")


@pytest.fixture
def script(monkeypatch):
    """Imports a script by its name, as Python finds it when it is run."""
    for folder in (ACCURACY, LEVELS):
        monkeypatch.syspath_prepend(folder)
    return importlib.import_module


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------ pack.py


@pytest.fixture
def images(tmp_path):
    """A folder of pictures, each of one colour that tells which it is."""
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                colour = (100 * label + 10 * number, number, number)
                Image.new("RGB", (8, 6), colour).save(folder / f"{number:04}.png")
    return tmp_path / "pictures"


def test_a_packed_folder_is_what_the_data_set_npz_reads(script, images, tmp_path, capsys):
    target = tmp_path / "pictures.npz"
    script("pack").main([str(images), str(target)])
    assert "train_images: uint8 (8, 6, 8, 3)" in capsys.readouterr().out
    data = Npz(path=str(target))
    assert data.input_shape == (3, 6, 8)
    assert data.train_set.labels.tolist() == [0] * 4 + [1] * 4
    assert data.test_set.labels.tolist() == [0, 0, 1, 1]
    assert data.train_set.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 100, 110, 120, 130]
    with np.load(target, allow_pickle=False) as archive:
        assert archive["class_names"].tolist() == list(CLASSES)


def test_an_archive_gives_the_same_arrays_as_its_folder(script, images, tmp_path):
    archive = tmp_path / "pictures.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(images, "pictures")
    expected, found = script("pack").pack(images), script("pack").pack(archive)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_subset_has_as_many_images_of_each_class_and_the_whole_test_set(script, images):
    arrays = script("pack").pack(images, train=4, seed=1)
    assert arrays["train_labels"].tolist() == [0, 0, 1, 1]
    assert len(np.unique(arrays["train_images"], axis=0)) == 4
    assert len(arrays["test_labels"]) == 4


@pytest.mark.parametrize(
    ("train", "stray", "message"),
    [
        (3, None, "a multiple of 2 classes of up to 4"),
        (10, None, "a multiple of 2 classes of up to 4"),
        (None, "lost.png", "train/CLASS/FILE"),
        (None, "test/bird/1.png", "training images of every class"),
    ],
)
def test_what_cannot_be_packed_is_refused(script, images, train, stray, message):
    if stray:
        (images / stray).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(images / stray)
    with pytest.raises(ValueError, match=message):
        script("pack").pack(images, train=train)


# ------------------------------------------------------------------------------------ the studies


@cache
def cells(study: Path) -> list[Cell]:
    return expand(load_study(study))


def test_both_studies_have_the_same_levels_of_the_same_defences():
    accuracy, levels = cells(ACCURACY / "study.yaml"), cells(LEVELS / "study.yaml")
    trained = {(cell.axes["model"], cell.axes["defence"]): cell.config for cell in accuracy}
    assert {cell.config.model.init_args["optimizer"] for cell in accuracy} == {"adam"}
    for cell in levels:
        config = trained[cell.axes["model"], cell.axes["defence"]]
        assert config.defenses == cell.config.defenses
        assert config.model_name == cell.config.model_name
        bottleneck = config.model.init_args.get("precode")
        assert bottleneck == cell.config.model.init_args.get("precode")
    for kind in ("noise", "pruning"):
        assert len({c.axes["defence"] for c in levels if kind in c.axes["defence"]}) >= 5


def test_the_centralised_study_differs_in_clients_and_rounds_alone():
    trained = {}
    for name in ("study", "centralised"):
        for cell in cells(ACCURACY / f"{name}.yaml"):
            federation = replace(cell.config.federation, clients=1, rounds=1)
            plain = replace(cell.config, federation=federation)
            trained.setdefault((cell.axes["model"], cell.axes["defence"]), []).append(plain)
    both = [configs for configs in trained.values() if len(configs) == 2]
    assert len(both) == 8
    assert all(federated == central for federated, central in both)


# ------------------------------------------------------------------------------------ the scripts


def cell_of(sweep: Path, name: str, curve=(), victims=(), status="complete") -> None:
    """A run's folder with a training curve, or with scores of victims."""
    folder = sweep / "cells" / name
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"status": status}))
    with SummaryWriter(str(folder / "tensorboard" / "lenet")) as writer:
        for round_, accuracy in enumerate(curve):
            writer.add_scalar("3 training/global model/test/accuracy", accuracy, round_)
            writer.add_scalar("3 training/global model/test/loss", 2.0, round_)
    lines = [f"0.1,10,{ssim},{int(ssim >= 0.6)}" for ssim in victims]
    (folder / "results.csv").write_text("\n".join(["mse,psnr,ssim,success", *lines]) + "\n")


@pytest.fixture
def sweeps(tmp_path):
    """Two sweeps in which noise costs accuracy; some cells have not ended."""
    accuracy, attacks = tmp_path / "accuracy", tmp_path / "attacks"
    cell_of(accuracy, "a", [0.1, 0.4, 0.5])
    cell_of(accuracy, "b", [0.1, 0.2, 0.25])
    cell_of(accuracy, "c", [0.1], status="running")
    cell_of(accuracy, "d", [0.1, 0.6])
    cell_of(attacks, "a", victims=[0.9, 0.8, 0.7, 0.5])
    cell_of(attacks, "b", victims=[0.1, 0.2, 0.3, 0.0])
    (accuracy / "cells.csv").write_text(
        "cell,training,defence,model,folder\na,federated,none,lenet,cells/a\n"
        "b,federated,noise 10,lenet,cells/b\nc,federated,noise 1,lenet,cells/c\n"
        "d,centralised,none,lenet,cells/d\n"
    )
    (attacks / "cells.csv").write_text(
        "cell,defence,model,folder\nb,noise 10,lenet,cells/b\na,none,lenet,cells/a\n"
        "c,noise 1,lenet,cells/c\n"
    )
    return accuracy, attacks


def test_curves_are_those_of_the_finished_cells(script, sweeps, tmp_path, capsys):
    script("curves").main([str(sweeps[0]), "--output", str(tmp_path / "results")])
    rows = read(tmp_path / "results" / "curves.csv")
    found = [(r["training"], r["defence"], r["round"], float(r["accuracy"])) for r in rows]
    assert found == [
        *[("federated", "none", str(n), value) for n, value in enumerate([0.1, 0.4, 0.5])],
        *[("federated", "noise 10", str(n), value) for n, value in enumerate([0.1, 0.2, 0.25])],
        *[("centralised", "none", str(n), value) for n, value in enumerate([0.1, 0.6])],
    ]
    assert "| federated | none | 50.0 |" in capsys.readouterr().out
    (panel, *_) = script("curves").figure(rows, ["none", "noise 10"]).axes
    assert panel.get_title() == "lenet"
    assert {line.get_label(): line.get_xydata().tolist() for line in panel.get_lines()} == {
        "none, federated": [[0, 10], [1, 40], [2, 50]],
        "noise 10, federated": [[0, 10], [1, 20], [2, 25]],
        "none, centralised": [[0, 10], [1, 60]],
    }
    with Image.open(tmp_path / "results" / "curves.png") as picture:
        picture.verify()
        assert picture.format == "PNG"


def test_levels_join_success_with_the_accuracy_of_the_federation(script, sweeps, tmp_path, capsys):
    results = tmp_path / "results"
    script("curves").main([str(sweeps[0]), "--output", str(results)])
    script("compare").main([str(sweeps[1]), str(results / "curves.csv"), str(results)])
    plain, noisy = read(results / "levels.csv")
    assert (plain["defence"], plain["asr"], plain["accuracy"]) == ("none", "0.7500", "0.5000")
    assert (plain["victims"], plain["successes"]) == ("4", "3")
    assert float(plain["ssim"]) == pytest.approx(np.mean([0.9, 0.8, 0.7, 0.5]), rel=1e-5)
    assert float(plain["ssim_std"]) == pytest.approx(np.std([0.9, 0.8, 0.7, 0.5], ddof=1), rel=1e-5)
    assert (noisy["defence"], noisy["asr"], noisy["accuracy"]) == ("noise 10", "0.0000", "0.2500")
    assert len(read(results / "results.csv")) == 8
    assert "| lenet | none | 3 of 4 | 0.7250 ± 0.1708 |" in capsys.readouterr().out
    (panel,) = script("compare").figure(read(results / "levels.csv")).axes
    assert {line.get_label(): line.get_xydata().tolist() for line in panel.get_lines()} == {
        "none": [[50, 75]], "noise": [[25, 0]],
    }  # fmt: skip
    with Image.open(results / "levels.png") as picture:
        picture.verify()
        assert picture.format == "PNG"


def test_numbers_of_neighbours_stand_together(script):
    points = [(40.0, 100.0), (41.0, 100.0), (41.0, 0.0), (20.0, 0.0)]
    levels = ["noise 0.1", "noise 1", "noise 10", "noise 30"]
    assert script("compare").together(points, levels) == [
        ((40.5, 100.0), "0.1, 1"), ((41.0, 0.0), "10"), ((20.0, 0.0), "30"),
    ]  # fmt: skip


def test_scripts_say_so_where_nothing_has_ended(script, sweeps, tmp_path, capsys):
    (sweeps[0] / "cells.csv").write_text("cell,training,defence,model,folder\n")
    with pytest.raises(SystemExit):
        script("curves").main([str(sweeps[0]), "--output", str(tmp_path / "results")])
    assert "at least one finished cell" in capsys.readouterr().err


# ------------------------------------------------------------------------------------ in small


@pytest.mark.slow
def test_the_smoke_studies_run_and_their_results_can_be_drawn(script, tmp_path):
    results = tmp_path / "results"
    for folder in (ACCURACY, LEVELS):
        study = load_study(folder / "smoke.yaml")
        summary = run_sweep(study, tmp_path / folder.name, launch=CellHere)
        assert summary["status"] == "complete"
    script("curves").main([str(tmp_path / ACCURACY.name), "--output", str(results)])
    script("compare").main([str(tmp_path / LEVELS.name), str(results / "curves.csv"), str(results)])
    assert {row["round"] for row in read(results / "curves.csv")} == {"0", "1", "2"}
    levels = read(results / "levels.csv")
    (noisy,) = [row for row in levels if row["victims"]]
    assert noisy["accuracy"]
    assert noisy["victims"] == "2"
    assert (results / "curves.png").is_file()
    assert (results / "levels.png").is_file()
