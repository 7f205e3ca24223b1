"""The study of the closed form in seconds, and the files of the real one."""

import csv
import json
import statistics
from collections import Counter
from pathlib import Path

import pytest
import yaml

from fedleak import cli

FOLDER = Path(__file__).parents[2] / "experiments" / "exact"


def test_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["sweep", str(FOLDER / "smoke.yaml"), "--output", "sweep"])
    assert end.value.code in (0, None)
    with Path("sweep/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter((row["attack"], row["model"]) for row in rows) == {
        ("exact_nra", "lenetr+precode"): 2, ("exact_nra", "smlp+precode"): 2,
    }  # fmt: skip
    for row in rows:
        assert float(row["ssim"]) > (0.999 if row["model"].startswith("smlp") else 0.6)
        assert float(row["noise_mse"]) < 1e-8
    found = [
        json.loads(line)
        for path in Path("sweep/cells").glob("*/findings.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert Counter(line["model"] for line in found) == {"lenetr+precode": 2, "smlp+precode": 2}


def test_smoke_differs_from_the_study_in_size_alone() -> None:
    study, smoke = (
        yaml.safe_load((FOLDER / name).read_text()) for name in ("study.yaml", "smoke.yaml")
    )
    assert smoke["base"]["attacks"] == study["base"]["attacks"]
    assert smoke["grid"]["bottleneck"] == study["grid"]["bottleneck"]
    assert set(smoke["grid"]["model"]) <= set(study["grid"]["model"])


def test_every_mean_of_the_table_can_be_computed_again() -> None:
    with (FOLDER / "results" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (FOLDER / "results" / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert table
    for entry in table:
        values = [
            float(row["ssim"])
            for row in rows
            if all(row[name] == entry[name] for name in ("attack", "model", "dataset", "defense"))
        ]
        assert len(values) == int(entry["n"])
        assert float(entry["ssim_mean"]) == pytest.approx(statistics.mean(values), abs=1e-4)
