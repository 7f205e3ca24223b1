"""The tables and the picture that a sweep ends with, from folders made by hand."""

import csv
from pathlib import Path

import numpy as np
import pytest

from fedleak.reporting.sweep_picture import write_picture
from fedleak.reporting.sweep_tables import write_tables
from tests.reporting.sweeps import GRID, default_rows, make, row


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
