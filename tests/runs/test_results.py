import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedleak.attacks import Reconstruction
from fedleak.config import Metrics, RunConfig, Victims
from fedleak.errors import BadInput
from fedleak.registry import Plugin
from fedleak.runs.folder import Row, RunFolder
from fedleak.runs.results import (
    COLUMNS,
    Recorder,
    append_rows,
    parse_rows,
    read_rows,
    repair_results,
)
from fedleak.runs.scoring import ImageScoring
from fedleak.runs.summary import summarise
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate
from tests.cases import pictures
from tests.runs.rows import config, row


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.csv"


# ------------------------------------------------------------------------------- results.csv


def test_columns_in_the_order_of_the_house(path: Path) -> None:
    append_rows(path, [row()])
    header, line = path.read_text(encoding="utf-8").splitlines()
    assert header == (
        "round,client,sample,attack,defense,model,dataset,batch_size,mse,psnr,ssim,success,"
        "noise_mse,cost,iterations,seconds"
    )
    assert line == "1,0,0,iga,none,smlp,photos,2,0.5,3.0,0.25,0,1.5,0.125,7,2.0"
    assert ",".join(COLUMNS) == header


def test_rows_come_back(path: Path) -> None:
    rows = [row(sample=0), row(sample=1, psnr=math.inf, cost=1e-30, dataset='odd, "quoted" ü')]
    append_rows(path, rows[:1])
    append_rows(path, rows[1:])
    found = read_rows(path)
    assert found == rows
    assert isinstance(found[0]["success"], int)
    assert isinstance(found[0]["seconds"], float)
    with path.open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_cells_that_were_not_scored_are_empty(path: Path) -> None:
    full = row()
    bare = {
        n: v for n, v in full.items() if n not in ("mse", "psnr", "ssim", "success", "noise_mse")
    }
    append_rows(path, [bare])
    (found,) = read_rows(path)
    assert found == bare | dict.fromkeys(("mse", "psnr", "ssim", "success", "noise_mse"))


def test_not_a_number_comes_back(path: Path) -> None:
    append_rows(path, [row(noise_mse=math.nan)])
    assert math.isnan(read_rows(path)[0]["noise_mse"])


def test_no_file_no_rows(path: Path) -> None:
    assert read_rows(path) == []
    assert repair_results(path) == set()
    assert not path.exists()


@pytest.mark.parametrize("text", ["a,b\n1,2\n", ",".join([*COLUMNS, "more"]) + "\n", "\n"])
def test_other_columns(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=r"Expected the columns round, client, sample, .* in "):
        read_rows(path)


def test_unknown_value_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="psrn"):
        append_rows(path, [row(psrn=1)])


@pytest.mark.parametrize(
    ("column", "text", "sentence"),
    [
        ("round", "0", "a whole number from 1 for round"),
        ("round", "", "a whole number from 1 for round"),
        ("client", "-1", "a whole number from 0 for client"),
        ("client", "1.0", "a whole number from 0 for client"),
        ("sample", "1" * 10, "a whole number from 0 for sample"),
        ("sample", "٣", "a whole number from 0 for sample"),
        ("batch_size", "many", "a whole number from 1 for batch_size"),
        ("success", "2", "0 or 1 for success"),
        ("success", "nan", "0 or 1 for success"),
        ("iterations", "-7", "a whole number from 0 for iterations"),
        ("mse", "-0.1", "a number from 0 for mse"),
        ("mse", "text", "a number from 0 for mse"),
        ("psnr", "text", "a number for psnr"),
        ("ssim", "1.1", "a number from -1 to 1 for ssim"),
        ("ssim", "inf", "a number from -1 to 1 for ssim"),
        ("noise_mse", "-1", "a number from 0 for noise_mse"),
        ("cost", "0x10", "a number for cost"),
        ("seconds", "nan", "a number from 0 for seconds"),
        ("seconds", "inf", "a number from 0 for seconds"),
        ("seconds", "-1", "a number from 0 for seconds"),
        ("defense", "a\x1bb", "text for defense"),
        ("dataset", '"a\nb"', "text for dataset"),
        ("model", "../x", "the name of the model"),
        ("attack", "", "the name of the attack"),
    ],
)
def test_a_cell_that_is_not_what_its_column_holds(
    path: Path, column: str, text: str, sentence: str
) -> None:
    append_rows(path, [row(), row()])
    *lines, last = path.read_text(encoding="utf-8").splitlines()
    cells = last.split(",")
    cells[COLUMNS.index(column)] = text
    damaged = "\n".join([*lines, ",".join(cells)]) + "\n"
    path.write_text(damaged, encoding="utf-8")
    for read in (read_rows, repair_results):
        with pytest.raises(BadInput, match=rf"Expected {sentence} in line [34] of .*results.csv"):
            read(path)
    assert path.read_text(encoding="utf-8") == damaged  # nothing of it is lost


def test_what_scores_may_be() -> None:
    """NaN of broken reconstructions, infinity of perfect ones, a little more than 1 of rounding."""
    scores = {"mse": math.inf, "psnr": -math.inf, "ssim": math.nan, "cost": math.nan}
    text = ",".join(COLUMNS) + "\n" + ",".join(map(str, row(**scores).values())) + "\n"
    assert str(parse_rows(text, Path("file"))[0]) == str(row(**scores))
    text = text.replace("nan,0,", "1.0000001,0,")
    assert parse_rows(text, Path("file"))[0]["ssim"] == 1.0000001


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: text + b"1,2\n", "16 cells in line 3 of .*, got 2"),
        (lambda text: text + b"," * 20 + b"\n", "16 cells in line 3 of .*, got 21"),
        (lambda text: text + b"\n", "16 cells in line 3 of .*, got 0"),
        (lambda text: text + b'1,"2\n', "a table of results in .*unexpected end of data"),
        (lambda text: text + b"1,a\rb\n", "a table of results in|16 cells"),
        (lambda text: text + b"x" * 200_000, "a table of results in .*field limit"),
        (lambda text: text + b"\xff\n", r"text in UTF-8 in .*, got other bytes at 1\d\d"),
        (lambda text: text.replace(b"iga", b"i\0a"), "text in .*, got a NUL character"),
        (lambda text: text.replace(b"mse,", b"mse,mse,"), "the columns round, .* 'round,client"),
        (lambda text: b"", "the columns round, "),
    ],
)
def test_no_table_of_results(path: Path, damage: Callable[[bytes], bytes], sentence: str) -> None:
    append_rows(path, [row()])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match=f"Expected {sentence}"):
        read_rows(path)


def test_more_results_than_memory(path: Path) -> None:
    append_rows(path, [row()])
    with path.open("r+b") as file:
        file.truncate(2**26 + 1)  # takes no room on the disk
    for read in (read_rows, repair_results):
        with pytest.raises(BadInput, match=r"at most 67,108,864 bytes in .*, got 67,108,865"):
            read(path)


# ------------------------------------------------------------------------------ after a kill

DONE_0, DONE_1 = ("smlp", "iga", 1, 0), ("smlp", "iga", 1, 1)
WHOLE = [row(0, 0), row(0, 1), row(1, 0), row(1, 1)]


def test_a_whole_file_is_left_alone(path: Path) -> None:
    append_rows(path, WHOLE)
    before = path.read_bytes()
    assert repair_results(path) == {DONE_0, DONE_1}
    assert path.read_bytes() == before


def test_cut_anywhere_it_keeps_the_whole_updates(path: Path) -> None:
    """Whatever the byte at which the writing stopped."""
    append_rows(path, WHOLE)
    whole = path.read_bytes()
    first_done = sum(len(line) for line in whole.splitlines(keepends=True)[:3])
    breaks = [end for end, byte in enumerate(whole) if byte == ord("\n")]
    for end in sorted({*range(0, len(whole), 7), *breaks, *(end + 1 for end in breaks)}):
        path.write_bytes(whole[:end])
        done = repair_results(path)
        expected = {DONE_0} if end >= first_done else set()
        expected |= {DONE_1} if end == len(whole) else set()
        assert done == expected, end
        assert read_rows(path) == WHOLE[: 2 * len(expected)]
        append_rows(path, WHOLE[2 * len(expected) :])
        assert path.read_bytes() == whole, end
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_cut_within_a_letter(path: Path) -> None:
    """The data set of a file Bäume.npz, killed between the bytes of the ä."""
    append_rows(path, [row(0, 0, dataset="Bäume"), row(0, 1, dataset="Bäume")])
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rfind("ä".encode()) + 1])
    assert repair_results(path) == set()
    assert read_rows(path) == []


def test_half_a_batch_between_whole_ones(path: Path) -> None:
    others = [row(attack="nra", batch_size=1), row(model="smlp+precode", batch_size=1)]
    append_rows(path, [*WHOLE[:2], WHOLE[2], *others])
    done = repair_results(path)
    assert done == {DONE_0, ("smlp", "nra", 1, 0), ("smlp+precode", "iga", 1, 0)}
    assert read_rows(path) == [*WHOLE[:2], *others]


# --------------------------------------------------------------------------------- summarise


# ----------------------------------------------------------------------------- the run's folder


# -------------------------------------------------------------------------------- the recorder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    found.open(config(tmp_path), resume=False, overwrite=False)
    return found


def recorded(folder: RunFolder, settings: RunConfig, truth: bool = True) -> list[Row]:
    """Two pictures, reconstructed perfectly but in the other order."""
    images = torch.cat([pictures(1, (3, 8, 8), seed=seed) for seed in range(2)]).float()
    labels = torch.tensor([0, 1])
    update = InterceptedUpdate(2, 5, "fedsgd", 2, "smlp+precode", {}, {})
    noise = {"slot": torch.tensor([[1.0], [2.0]])}
    result = Reconstruction(
        images.flip(0), labels, {"slot": torch.tensor([[2.5], [1.0]])},
        costs=[(0, 1.0), (50, 0.25)], iterations=50, seconds=3.0,
    )  # fmt: skip
    recorder = Recorder(folder, settings, ImageScoring(settings.metrics, (0.0,) * 3, (1.0,) * 3))
    rows = recorder.record(
        "nra", update, GroundTruth(images, labels, noise) if truth else None, result
    )
    assert recorder.done == {("smlp+precode", "nra", 2, 5)}
    return rows


def test_rows_of_an_update(folder: RunFolder, tmp_path: Path) -> None:
    rows = recorded(folder, config(tmp_path))
    assert read_rows(folder.results) == rows
    for sample, (found, error) in enumerate(zip(rows, (0.0, 0.25), strict=True)):
        expected = {
            "round": 2, "client": 5, "sample": sample, "attack": "nra", "defense": "none",
            "model": "smlp+precode", "dataset": "photos", "batch_size": 2, "mse": 0,
            "psnr": math.inf, "ssim": 1, "success": 1, "noise_mse": error, "cost": 0.25,
            "iterations": 50, "seconds": 1.5,
        }  # fmt: skip
        assert {n: v for n, v in found.items() if n in COLUMNS} == pytest.approx(expected)


def test_rows_name_the_defence(folder: RunFolder, tmp_path: Path) -> None:
    pruning = Plugin("fedleak.defenses.pruning.Pruning", {"ratio": 0.5})
    rows = recorded(folder, config(tmp_path, defenses=(pruning,)))
    assert {found["defense"] for found in rows} == {"pruning(ratio=0.5)"}
    assert read_rows(folder.results) == rows


def test_pictures_of_the_samples(folder: RunFolder, tmp_path: Path) -> None:
    """Each lies where its row says, the matching undone."""
    rows = recorded(folder, config(tmp_path))
    for sample, found in enumerate(rows):
        path = folder.reconstruction(found)
        assert path.name == f"smlp+precode-nra-r0002-c0005-{sample}.png"
        picture = np.asarray(Image.open(path))
        expected = pictures(1, (3, 8, 8), seed=sample)[0].permute(1, 2, 0) * 255
        np.testing.assert_allclose(picture, expected.numpy(), atol=0.51)


def test_without_truth_the_scores_stay_empty(folder: RunFolder, tmp_path: Path) -> None:
    recorded(folder, config(tmp_path), truth=False)
    rows = read_rows(folder.results)
    assert [found["sample"] for found in rows] == [0, 1]
    assert [found["cost"] for found in rows] == [0.25, 0.25]
    for name in ("mse", "psnr", "ssim", "success", "noise_mse"):
        assert [found[name] for found in rows] == [None, None]
    assert len(list(folder.reconstructions.iterdir())) == 2
    assert summarise(rows)[0]["asr"] is None


def test_threshold_and_space_of_the_configuration(folder: RunFolder, tmp_path: Path) -> None:
    update = InterceptedUpdate(1, 0, "fedsgd", 1, "smlp", {}, {})
    image = pictures(1, (1, 12, 12))
    generator = torch.Generator().manual_seed(0)
    rough = image + 0.15 * torch.randn(image.shape, generator=generator)
    labels = torch.tensor([0])
    found = {}
    for space in ("pixels", "normalised"):
        for threshold in (0.05, 0.95):
            settings = config(tmp_path, metrics=Metrics(space, threshold))
            recorder = Recorder(folder, settings, ImageScoring(settings.metrics, (0.1,), (0.5,)))
            (item,) = recorder.record(
                "iga", update, GroundTruth(image, labels), Reconstruction(rough, labels)
            )
            found[space, threshold] = item
            assert item["success"] == (threshold == 0.05)
    assert found["pixels", 0.05]["mse"] < 0.3 * found["normalised", 0.05]["mse"]


@pytest.mark.parametrize(
    ("explained", "success", "cell"), [(0.95, 1, 0.95), (0.49, 0, 0.49), (math.nan, 1, None)]
)
def test_what_the_update_does_not_support_is_no_success(
    folder: RunFolder, tmp_path: Path, explained: float, success: int, cell: float | None
) -> None:
    image, labels = pictures(1, (1, 8, 8)), torch.tensor([0])
    update = InterceptedUpdate(1, 0, "fedsgd", 1, "smlp", {}, {})
    recorder = Recorder(folder, config(tmp_path), ImageScoring(Metrics(), (0.0,), (1.0,)))
    exact = Reconstruction(image, labels, explained=explained)
    (item,) = recorder.record("iga", update, GroundTruth(image, labels), exact)
    assert item["ssim"] == pytest.approx(1)
    assert (item["success"], item["explained"]) == (success, cell)
    (entry,) = summarise(read_rows(folder.results))
    assert entry["unsupported"] == int(explained < 0.5)
    assert entry["explained"] == cell


def test_label_accuracy_is_that_of_recovered_labels(folder: RunFolder, tmp_path: Path) -> None:
    images, labels = pictures(2, (1, 8, 8)), torch.tensor([0, 1])
    update = InterceptedUpdate(1, 0, "fedsgd", 2, "smlp", {}, {})
    found = Reconstruction(images.flip(0), torch.tensor([3, 0]), explained=1.0)
    for kind, expected in (("recovered", [1.0, 0.0]), ("known", [None, None])):
        settings = replace(config(tmp_path), victims=Victims(labels=kind))  # type: ignore[arg-type]
        own = Recorder(folder, settings, ImageScoring(Metrics(), (0.0,), (1.0,)))
        rows = own.record("iga", update, GroundTruth(images, labels), found)
        assert [item["label_accuracy"] for item in rows] == expected


def test_a_run_of_an_earlier_version_keeps_its_columns(folder: RunFolder, tmp_path: Path) -> None:
    append_rows(folder.results, [row(batch_size=1, client=7)])
    image, labels = pictures(1, (1, 8, 8)), torch.tensor([0])
    update = InterceptedUpdate(1, 0, "fedsgd", 1, "smlp", {}, {})
    recorder = Recorder(folder, config(tmp_path), ImageScoring(Metrics(), (0.0,), (1.0,)))
    recorder.record("iga", update, GroundTruth(image, labels), Reconstruction(image, labels))
    assert [set(item) for item in read_rows(folder.results)] == [set(COLUMNS)] * 2


def test_a_broken_reconstruction_is_recorded_all_the_same(
    folder: RunFolder, tmp_path: Path
) -> None:
    image, labels = pictures(1, (1, 8, 8)), torch.tensor([0])
    update = InterceptedUpdate(1, 0, "fedsgd", 1, "smlp", {}, {})
    recorder = Recorder(folder, config(tmp_path), ImageScoring(Metrics(), (0.0,), (1.0,)))
    broken = Reconstruction(torch.full_like(image, math.nan), labels)
    (item,) = recorder.record("iga", update, GroundTruth(image, labels), broken)
    assert item["success"] == 0
    assert math.isnan(read_rows(folder.results)[0]["mse"])
    assert folder.reconstruction(item).exists()
    assert repair_results(folder.results) == {("smlp", "iga", 1, 0)}
