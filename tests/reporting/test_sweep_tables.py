"""The tables and the picture that a sweep ends with, from folders made by hand."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fedleak.reporting import sweep_picture as study_picture
from fedleak.reporting.sweep_picture import SIDE, write_picture
from fedleak.reporting.sweep_tables import write_tables
from fedleak.runs.results import append_rows
from fedleak.sweep import SweepFolder, expand, load_study
from fedleak.sweep.study import study_hash
from fedleak.updates.files import update_key
from fedleak.updates.truth import GroundTruth

GRID = {
    "model": [
        {"name": "SMLP", "set": {"model": "smlp"}},
        {"name": "SMLP+P", "set": {"model": "smlp", "model.precode.beta": 0.1}},
        {"name": "LeNet", "set": {"model": "lenet"}},
    ],
    "seed": [0, 1],
}


def make(tmp_path: Path, grid=GRID, rows=None, **base):
    """A sweep's folder; ``rows(cell, number)`` gives the results of each cell."""
    file, output = tmp_path / "study.yaml", tmp_path / "out"
    common = {"data": "photos", "model": "smlp", "attacks": ["iga", "nra"]}
    common |= {"federation": {"clients": 2}}
    text = yaml.safe_dump({"base": common | base, "grid": grid}, sort_keys=False)
    file.write_text(text)
    study = load_study(file)
    cells, folder = expand(study), SweepFolder(output)
    hash_ = study_hash(cells)
    entries = []
    with folder.open(study, cells, hash_, resume=False, overwrite=False):
        for number, cell in enumerate(cells):
            found = (rows or default_rows)(cell, number)
            entries.append({
                "name": cell.name, "axes": cell.axes, "seconds": 1.0,
                "status": "complete" if found else "failed",
                "error": None if found else "Expected better weather, got rain.",
            })  # fmt: skip
            if found:
                run = folder.run(cell.name)
                run.open(cell.config, resume=False, overwrite=False)
                append_rows(run.results, found)
        folder.write_results(cells)
    folder.write_summary({"status": "failed", "study_hash": hash_, "cells": entries})
    return output


def row(cell, client: int, ssim: float, **more) -> dict:
    return {
        "round": 1, "client": client, "sample": 0, "attack": "iga", "defense": "none",
        "model": cell.config.model_name, "dataset": cell.config.data_name, "batch_size": 1,
        "mse": ssim / 2, "psnr": 10 * ssim, "ssim": ssim, "success": int(ssim >= 0.6),
        "noise_mse": float("nan"), "cost": 0.1, "iterations": 7, "seconds": 2.0,
    } | more  # fmt: skip


def default_rows(cell, number: int) -> list[dict]:
    rows = [row(cell, client, 0.1 + 0.2 * client + 0.3 * cell.config.seed) for client in (0, 1)]
    if "precode" in cell.config.model_name:
        rows += [row(cell, 0, 0.9, attack="nra", noise_mse=0.25)]
    return rows


def table(output: Path) -> list[dict]:
    with (output / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def markdown(output: Path) -> list[list[str]]:
    lines = (output / "results.md").read_text().splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]


# ------------------------------------------------------------------------------------ the tables


def test_means_are_those_of_the_rows(tmp_path):
    output = make(tmp_path)
    assert write_tables(output) == [output / "results.md", output / "table.csv"]
    first = table(output)[0]
    similarities = np.array([0.1, 0.3, 0.4, 0.6])
    assert first["n"] == "4"
    assert float(first["ssim_mean"]) == pytest.approx(similarities.mean())
    assert float(first["ssim_std"]) == pytest.approx(similarities.std(ddof=1))
    assert float(first["mse_mean"]) == pytest.approx(similarities.mean() / 2)
    assert float(first["psnr_std"]) == pytest.approx(10 * similarities.std(ddof=1))
    assert float(first["asr"]) == 0.25
    assert (first["noise_mse_mean"], first["noise_mse_std"]) == ("", "")
    assert (float(first["iterations_mean"]), float(first["iterations_std"])) == (7, 0)
    assert markdown(output)[2] == [
        "photos", "smlp", "none", "iga", "4", "0.3500 ± 0.2082", "3.50 ± 2.08",
        "1.75e-01 ± 1.04e-01", "25%", "-", "2.0", "7",
    ]  # fmt: skip


def test_rows_are_in_the_order_of_the_study_and_seeds_are_one_mean(tmp_path):
    grid = {"seed": GRID["seed"], "model": GRID["model"][1:] + GRID["model"][:1]}
    output = make(tmp_path, grid)
    write_tables(output)
    assert [(item["model"], item["attack"], item["n"]) for item in table(output)] == [
        ("smlp", "iga", "4"), ("smlp+precode", "iga", "4"), ("smlp+precode", "nra", "2"),
        ("lenet", "iga", "4"),
    ]  # fmt: skip
    assert table(output)[2]["noise_mse_mean"] == "0.25"


def test_an_axis_that_the_names_do_not_tell_apart_gets_a_column(tmp_path):
    grid = {
        "model": ["smlp", "lenet"],
        "images": [{"name": "one|1", "set": {}}, {"name": "4", "set": {"federation.rounds": 4}}],
    }
    output = make(tmp_path, grid)
    write_tables(output)
    assert list(table(output)[0])[:6] == ["dataset", "model", "defense", "attack", "images", "n"]
    assert [(item["model"], item["images"], item["n"]) for item in table(output)] == [
        ("smlp", "one|1", "2"), ("smlp", "4", "2"), ("lenet", "one|1", "2"), ("lenet", "4", "2"),
    ]  # fmt: skip
    assert "one\\|1" in (output / "results.md").read_text()


def test_rounds_are_kept_apart_and_names_of_columns_too(tmp_path):
    grid = {"defense": [{"name": str(c), "set": {"federation.clients": c}} for c in (2, 3)]}
    output = make(
        tmp_path, grid, lambda cell, number: [row(cell, 0, 0.5), row(cell, 0, 0.7, round=2)]
    )
    write_tables(output)
    assert [(item["defense setting"], item["round"], item["n"]) for item in table(output)] == [
        ("2", "1", "1"), ("2", "2", "1"), ("3", "1", "1"), ("3", "2", "1"),
    ]  # fmt: skip
    assert table(output)[0]["ssim_std"] == ""


def test_caption_has_what_is_the_same_in_all_cells(tmp_path):
    output = make(tmp_path, metrics={"space": "normalised"})
    write_tables(output)
    text = (output / "results.md").read_text()
    assert "Metrics on normalised images, data range 2." in text
    assert "share of them with SSIM >= 0.6" in text
    assert "`federation.batch_size` 1" in text
    assert "`precode.beta` 0.1" in text
    assert "`seed`" not in text
    assert str(tmp_path) not in text


def test_settings_of_a_plugin_count_where_it_occurs(tmp_path):
    data = {"class_path": "npz", "init_args": {"path": "/somewhere/else/images.npz"}}
    attacks = [
        {"name": "A", "set": {"attacks": [{"class_path": "iga", "init_args": {"iterations": 9}}]}},
        {"name": "B", "set": {"attacks": [{"class_path": "nra", "init_args": {"iterations": 8}}]}},
    ]
    output = make(tmp_path, {"attack": attacks}, data=data)
    write_tables(output)
    text = (output / "results.md").read_text()
    assert "`iga.iterations` 9, `nra.iterations` 8, `npz.path` images.npz" in text.replace(
        "`npz.path` images.npz, `nra.iterations` 8", "`nra.iterations` 8, `npz.path` images.npz"
    )
    assert "/somewhere" not in text


def test_what_is_missing_is_said(tmp_path):
    output = make(tmp_path, rows=lambda cell, n: [] if n == 1 else default_rows(cell, n))
    write_tables(output)
    text = (output / "results.md").read_text()
    assert "Not complete:\n\n- `SMLP_seed1`: failed: Expected better weather, got rain.\n" in text
    assert table(output)[0]["n"] == "2"


def test_nothing_done_makes_an_empty_table(tmp_path):
    output = make(tmp_path, rows=lambda cell, number: [])
    write_tables(output)
    assert table(output) == []
    assert "\n\nNothing was attacked.\n" in (output / "results.md").read_text()
    assert write_picture(output) is None


# ----------------------------------------------------------------------------------- the picture


def paint(output: Path, side: int = 32) -> None:
    """Originals in a green of the client's own, reconstructions in red (base) or blue."""
    folder = SweepFolder(output)
    for cell in json.loads(folder.summary.read_text())["cells"]:
        run = folder.run(cell["name"])
        if not run.results.exists():
            continue
        # A scaling that leaves values as they are.
        data = {
            "name": "photos", "kind": "images", "input_shape": [3, side, side], "classes": 2,
            "mean": [0.0] * 3, "std": [1.0] * 3,
        }  # fmt: skip
        federation = {"rounds": 1, "clients": 2, "failures": 0, "accuracy": None}
        found = {"status": "complete", "data": data, "attacks": [], "federation": federation}
        run.summary.write_text(json.dumps(found))
        with run.results.open(newline="") as file:
            for found in csv.DictReader(file):
                client = int(found["client"])
                image = torch.zeros(1, 3, side, side)
                image[:, 1] = 1 - client / 5
                path = run.truth() / f"{update_key(1, client)}.safetensors"
                GroundTruth(image, torch.tensor([0]), {}).save(path)
                colour = (0, 0, 255) if "precode" in found["model"] else (255, 0, 0)
                Image.new("RGB", (side, side), colour).save(run.reconstruction(found))


def count(picture: Image.Image, colour: tuple[int, int, int]) -> float:
    """How many images are in this colour."""
    pixels = np.asarray(picture.convert("RGB"))
    return (pixels == colour).all(axis=2).sum() / SIDE**2


def test_picture_has_originals_and_reconstructions(tmp_path):
    output = make(tmp_path)
    paint(output)
    assert write_picture(output) == output / "picture.png"
    picture = Image.open(output / "picture.png")
    # Two seeds with two clients: four victims, and two groups, each with its originals.
    greens = [(0, 255, 0), (0, 204, 0)]
    assert [count(picture, green) for green in greens] == [4, 4]
    assert count(picture, (255, 0, 0)) == 8  # IGA on the undefended SMLP and LeNet
    assert count(picture, (0, 0, 255)) == 4 + 2  # IGA on PRECODE, and NRA on client 0
    # A column for each of original, IGA base, IGA PRECODE, NRA PRECODE; then the LeNet's two.
    width, height = picture.size
    assert width >= 6 * SIDE
    assert height >= 4 * SIDE


def test_picture_shows_six_victims_and_wraps_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(study_picture, "WIDTH", 3 * SIDE)

    def rows(cell, number):
        return [row(cell, client, 0.5) for client in range(8)]

    output = make(tmp_path, {"model": ["smlp", "lenet"]}, rows, federation={"clients": 8})
    paint(output, side=64)
    write_picture(output)
    picture = Image.open(output / "picture.png")
    assert count(picture, (255, 0, 0)) == 12
    assert picture.height >= 12 * SIDE  # one group below the other


def test_what_changes_the_originals_gets_a_group_and_what_does_not_a_column(tmp_path):
    grid = {
        "images": [{"name": f"B{size}", "set": {"federation.batch_size": size}} for size in (1, 2)],
        "restarts": [{"name": f"R{n}", "set": {"attacks.restarts": n}} for n in (1, 2)],
    }
    output = make(tmp_path, grid, lambda cell, number: [row(cell, 0, 0.5)])
    paint(output)
    write_picture(output)
    picture = Image.open(output / "picture.png")
    assert count(picture, (0, 255, 0)) == 2
    assert count(picture, (255, 0, 0)) == 4
