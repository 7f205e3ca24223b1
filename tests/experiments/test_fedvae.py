"""The recommender's study in seconds, and the files of the real one."""

import csv
import importlib.util
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedleak import cli
from fedleak.results import COLUMNS
from fedleak.scoring import ITEM_COLUMNS

FOLDER = Path(__file__).parents[2] / "experiments" / "fedvae"


def test_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["sweep", str(FOLDER / "smoke.yaml"), "--output", "sweep"])
    assert end.value.code in (0, None)
    with Path("sweep/results.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames) == (*COLUMNS, *ITEM_COLUMNS)
        rows = list(reader)
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
    with (FOLDER / "results" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (FOLDER / "results" / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert table
    for attack in {entry["attack"] for entry in table}:
        entries = [entry for entry in table if entry["attack"] == attack]
        values = [float(row["f1"]) for row in rows if row["attack"] == attack]
        assert len(values) == sum(int(entry["n"]) for entry in entries)
        weighted = sum(int(entry["n"]) * float(entry["f1_mean"]) for entry in entries)
        assert weighted / len(values) == pytest.approx(statistics.mean(values), abs=1e-4)


def test_smoke_attacks_as_the_study_does() -> None:
    study, smoke = (
        yaml.safe_load((FOLDER / name).read_text()) for name in ("study.yaml", "smoke.yaml")
    )
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
    spec = importlib.util.spec_from_file_location("training", FOLDER / "training.py")
    assert spec is not None
    assert spec.loader is not None
    training = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(training)
    text = (FOLDER / "README.md").read_text()
    for name, table in (("training", training.table), ("attacked", training.attacks)):
        with (FOLDER / "results" / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert table(rows) in text


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
    with pytest.raises(SystemExit):
        cli.main(["sweep", "study.yaml", "--output", "sweep"])
    command = [sys.executable, str(FOLDER / "training.py"), "sweep", "--output", "found"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "| federated | 1 | 1 |" in ended.stdout
    assert "| analytic | 1 | 4 |" in ended.stdout
    assert {path.name for path in Path("found").iterdir()} == {"training.csv", "attacked.csv"}
    ended = subprocess.run([*command[:2], "nothing", *command[3:]], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "Expected at least one finished cell" in ended.stderr
