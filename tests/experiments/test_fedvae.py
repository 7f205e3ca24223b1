"""The recommender's study in seconds, and the files of the real one."""

import shutil
import statistics
from pathlib import Path

import pytest

from fedleak.runs.results import COLUMNS
from fedleak.runs.scoring import EXPLAINED, ITEM_COLUMNS
from tests.experiments.studies import EXPERIMENTS, rows_of, script, study_and_smoke, swept

FOLDER = EXPERIMENTS / "fedvae"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the smoke was swept in."""
    folder = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        swept(FOLDER / "smoke.yaml")
    return folder / "sweep"


def test_smoke(smoke: Path) -> None:
    rows = rows_of(smoke / "results.csv")
    assert tuple(rows[0]) == ("cell", *COLUMNS, *ITEM_COLUMNS, EXPLAINED)
    cells = {(row["attack"], row["defense"]) for row in rows}
    assert cells == {
        (attack, guard) for attack in ("analytic", "nra") for guard in ("none", "pruning")
    }
    assert {"results.md", "table.csv"} <= {path.name for path in smoke.iterdir()}
    assert not (smoke / "picture.png").exists()  # there are no pictures of items
    # Undefended, whatever the users drew.
    exact = [row for row in rows if (row["attack"], row["defense"]) == ("analytic", "none")]
    assert [float(row["f1"]) for row in exact] == [1.0] * len(exact)


def test_every_mean_of_the_table_can_be_computed_again() -> None:
    rows, table = (rows_of(FOLDER / "results" / name) for name in ("results.csv", "table.csv"))
    assert table
    for attack in {entry["attack"] for entry in table}:
        entries = [entry for entry in table if entry["attack"] == attack]
        values = [float(row["f1"]) for row in rows if row["attack"] == attack]
        assert len(values) == sum(int(entry["n"]) for entry in entries)
        weighted = sum(int(entry["n"]) * float(entry["f1_mean"]) for entry in entries)
        assert weighted / len(values) == pytest.approx(statistics.mean(values), abs=1e-4)


def test_the_readmes_table_is_that_of_the_results() -> None:
    """Every row of the README has the figures of a row of table.csv, and every one is there."""
    text = (FOLDER / "README.md").read_text()
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith(("| dropout", "| noise", "| pruning"))
    ]
    expected = []
    for entry in rows_of(FOLDER / "results" / "table.csv"):
        n = int(entry["n"])
        figures = [
            _spread(float(entry[f"{name}_mean"]), float(entry[f"{name}_std"]))
            for name in ("precision", "recall", "f1")
        ]
        expected.append([str(n), *figures, f"{round(n * float(entry['asr']))} of {n}"])
    assert sorted(line[2:] for line in lines) == sorted(expected)


def _spread(mean: float, deviation: float) -> str:
    return f"{mean:.3f} ± {deviation:.3f}" if deviation else f"{mean:.3f}"


def test_smoke_attacks_as_the_study_does() -> None:
    study, small = study_and_smoke(FOLDER)
    kinds = []
    for grid in (study, small):
        attacks = [
            item if isinstance(item, str) else item["class_path"]
            for choice in grid["grid"]["attacks"]
            for item in choice["set"]["attacks"]
        ]
        kinds.append(set(attacks))
    assert kinds[1] <= kinds[0]


def test_the_readmes_tables_of_the_trainings_can_be_made_again() -> None:
    training = script(FOLDER / "training.py")
    text = (FOLDER / "README.md").read_text()
    for name, table in (("training", training.table), ("attacked", training.attacks)):
        assert table(rows_of(FOLDER / "results" / f"{name}.csv")) in text


def test_trainings_of_a_sweep_are_collected(
    smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the smoke's two cells, as if they were one training with two seeds."""
    training = script(FOLDER / "training.py")
    sweep = tmp_path / "sweep"
    shutil.copytree(smoke, sweep)
    lines = (sweep / "cells.csv").read_text().splitlines()
    header = lines[0].replace("attacks", "training").replace("setting", "seed")
    assert {"training", "seed"} <= set(header.split(","))
    (sweep / "cells.csv").write_text("\n".join([header, *lines[1:]]) + "\n")
    training.main([str(sweep), "--output", str(tmp_path / "found")])
    printed = capsys.readouterr().out
    assert "| relative error | 2 | 1 |" in printed
    assert "| analytic | 1 | 8 |" in printed
    files = {path.name for path in (tmp_path / "found").iterdir()}
    assert files == {"training.csv", "attacked.csv", "artists.md"}
    text = (tmp_path / "found" / "artists.md").read_text()
    assert text.count("Round 1, client ") == 1
    assert "| item | true | analytic on fedvae (F1 1.0000) |" in text


def test_a_folder_without_trainings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        script(FOLDER / "training.py").main([str(tmp_path), "--output", str(tmp_path / "found")])
    assert "Expected at least one finished cell" in capsys.readouterr().err
    assert not (tmp_path / "found").exists()
