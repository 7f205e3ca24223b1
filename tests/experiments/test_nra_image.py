"""The study of NRA in seconds, and the files of the real one."""

from collections import Counter
from pathlib import Path

import pytest

from fedleak.runs.results import COLUMNS
from tests.experiments.studies import (
    EXPERIMENTS,
    check_means_of_images,
    check_smoke_is_of_the_study,
    rows_of,
    swept,
)

FOLDER = EXPERIMENTS / "nra-image"


@pytest.mark.parametrize("on_ray", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_smoke(on_ray: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = swept(FOLDER / "smoke.yaml", on_ray=on_ray)
    assert Counter((row["attack"], row["model"]) for row in rows) == {
        ("iga", "lenet"): 2, ("iga", "lenet+precode"): 2, ("iga_partial", "lenet+precode"): 2,
        ("nra", "lenet+precode"): 2,
    }  # fmt: skip
    assert {"results.md", "table.csv", "picture.png"} <= {p.name for p in Path("sweep").iterdir()}


def test_smoke_differs_from_the_study_in_size_alone() -> None:
    check_smoke_is_of_the_study(FOLDER)


def test_every_mean_of_the_table_can_be_computed_again() -> None:
    check_means_of_images(FOLDER / "results")
    assert tuple(rows_of(FOLDER / "results" / "results.csv")[0]) == COLUMNS
