"""The tables of a run in a terminal."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import yaml
from rich.console import Console

from fedleak.config import Federation, Metrics, Victims
from fedleak.registry import Plugin
from fedleak.reporting import (
    paths_line,
    readings_text,
    results_table,
    rounds_table,
    write_report,
)
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import read_rows
from fedleak.runs.summary import summarise_rounds
from tests.federation.runs import (
    Finished,
)


def printed(thing: object, *, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(thing)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def test_the_results_table_fits_a_terminal(finished: Finished) -> None:
    lines = printed(results_table(finished.summary, finished.config))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for entry in finished.summary["attacks"]:
        row = next(
            line for line in lines
            if [entry["attack"], entry["model"]] == line.replace("│", " ").split()[:2]
        )  # fmt: skip
        cells = row.replace("│", " ").split()
        assert cells[2:] == [
            str(entry["n"]), f"{entry['ssim']:.4f}", f"{entry['psnr']:.2f}",
            "-" if entry["explained"] is None else f"{entry['explained']:.2f}",
            f"{entry['asr']:.0%}", f"{entry['seconds']:.1f}",
        ]  # fmt: skip
    for words in ("What the updates leak: tiny", "fedsgd, batch size 2, labels known", "[0, 1]"):
        assert words in text


def test_rounds_stand_side_by_side(finished: Finished) -> None:
    rows = read_rows(finished.folder.results)
    entries = summarise_rounds(rows)
    assert [entry["round"] for entry in entries] == [1, 2] * (len(entries) // 2)
    for entry in entries:
        own = [
            row["ssim"] for row in rows
            if all(row[name] == entry[name] for name in ("round", "attack", "model"))
        ]  # fmt: skip
        assert (entry["n"], entry["ssim"]) == (len(own), pytest.approx(np.mean(own)))
    table = rounds_table(rows, finished.config)
    assert table is not None
    lines = printed(table)
    assert max(map(len, lines)) <= 80
    assert sum(f"{entry['ssim']:.4f}" in "".join(lines) for entry in entries) == len(entries)
    second = [row for row in rows if row["round"] == 2]
    assert rounds_table(second, finished.config) is None


def test_a_table_with_long_names_and_large_numbers_fits_too(finished: Finished) -> None:
    entry = finished.summary["attacks"][0] | {
        "attack": "partial_iga", "model": "resnet18+precode", "n": 10_000, "psnr": -123.45,
        "seconds": 12_345.6, "mse": None, "asr": None, "explained": 0.25, "unsupported": 9_000,
    }  # fmt: skip
    config = replace(
        finished.config, metrics=Metrics(space="normalised"),
        federation=Federation(rounds=100), victims=Victims(labels="recovered"),
    )  # fmt: skip
    lines = printed(results_table({"attacks": [entry]}, config))
    assert max(map(len, lines)) <= 80
    text = " ".join("\n".join(lines).split())
    for words in (
        "10000", "-123.45", "12345.6", "round 1 to 100 of 100", "normalised images", "0.25",
        "9000 of 10000 reconstructions are not supported by the update",
    ):  # fmt: skip
        assert words in text


def test_where_to_look_next(finished: Finished, tmp_path: Path) -> None:
    text = paths_line(finished.folder).plain
    assert str(finished.folder.figures / "reconstructions.png") in text
    assert str(finished.folder.results) in text
    assert f"tensorboard --logdir {finished.folder.path.parent}" in text
    empty = paths_line(RunFolder(tmp_path)).plain
    assert "figures" not in empty
    assert "results.csv" not in empty  # it does not exist


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (0, "The server read 0 of 8 samples in 1 reading."),
        (
            3,
            "The server read 3 of 8 samples in 1 reading, 2 of them certified; its n is the number "
            "that it read.",
        ),
    ],
)
def test_what_a_server_read(found: int, text: str) -> None:
    reading = {"client": 0, "rounds": [1], "samples": 8, "found": found, "certified": found and 2}
    assert readings_text({"server": {"readings": [reading]}}).strip() == text


@pytest.mark.parametrize("known", ["known", "unknown"])
def test_the_caption_says_whether_the_attacker_knows_the_defence(
    known: Literal["known", "unknown"], finished: Finished
) -> None:
    config = replace(
        finished.config,
        defenses=(Plugin("fedleak.defenses.percentile.Percentile", {"percentile": 50.0}),),
        victims=Victims(defense=known),
    )
    caption = str(results_table(finished.summary, config).caption)
    assert f"defended by percentile(percentile=50.0) ({known} to the attacker)," in caption


@pytest.mark.parametrize("known", ["known", "unknown"])
def test_the_page_says_whether_the_attacker_knows_the_defence(
    known: str, finished: Finished, tmp_path: Path
) -> None:
    folder = RunFolder(shutil.copytree(finished.folder.path, tmp_path / "run"))
    assert "to the attacker</dd>" not in write_report(folder).read_text()
    settings = yaml.safe_load(folder.config.read_text())
    settings["defenses"] = [{"class_path": "fedleak.defenses.percentile.Percentile"}]
    settings["victims"]["defense"] = known
    folder.config.write_text(yaml.safe_dump(settings))
    page = write_report(folder, trust=True).read_text()
    assert f"<dd>{known} to the attacker</dd>" in page
