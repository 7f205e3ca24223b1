"""The recommender's study in seconds, and the files of the real one."""

import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedleak.results import COLUMNS
from fedleak.scoring import ITEM_COLUMNS
from tests.experiments.studies import EXPERIMENTS, rows_of, script, study_and_smoke, swept

FOLDER = EXPERIMENTS / "fedvae"


def test_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = swept(FOLDER / "smoke.yaml")
    assert tuple(rows[0]) == ("cell", *COLUMNS, *ITEM_COLUMNS)
    cells = {(row["attack"], row["defense"]) for row in rows}
    assert cells == {
        (attack, guard) for attack in ("analytic", "nra") for guard in ("none", "pruning")
    }
    assert {"results.md", "table.csv"} <= {path.name for path in Path("sweep").iterdir()}
    assert not Path("sweep/picture.png").exists()  # there are no pictures of items
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
    study, smoke = study_and_smoke(FOLDER)
    kinds = []
    for grid in (study, smoke):
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds of a few made-up users."""
    monkeypatch.chdir(tmp_path)
    study = yaml.safe_load((FOLDER / "smoke.yaml").read_text())
    study["grid"] = {
        "seed": [{"name": "seed 0", "set": {"seed": 0}}],
        "training": [{"name": "federated", "set": {"attacks": ["analytic"]}}],
    }
    Path("study.yaml").write_text(yaml.safe_dump(study))
    swept(Path("study.yaml"))
    command = [sys.executable, str(FOLDER / "training.py"), "sweep", "--output", "found"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "| federated | 1 | 1 |" in ended.stdout
    assert "| analytic | 1 | 4 |" in ended.stdout
    files = {path.name for path in Path("found").iterdir()}
    assert files == {"training.csv", "attacked.csv", "artists.md"}
    text = Path("found/artists.md").read_text()
    assert text.count("Round 1, client ") == 1
    assert "| item | true | analytic on fedvae (F1 1.0000) |" in text
    ended = subprocess.run([*command[:2], "nothing", *command[3:]], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "Expected at least one finished cell" in ended.stderr
