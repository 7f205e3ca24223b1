"""Scores of reconstructions, and the files of samples."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from fedleak.attacks import Reconstruction
from fedleak.config import Metrics
from fedleak.data.columns import TableColumn
from fedleak.runs.results import RANGES
from fedleak.runs.scoring import EXTRA_COLUMNS, SCORINGS, TableScoring, TokenScoring, to_picture
from fedleak.updates.truth import GroundTruth


def test_picture_in_colour_and_in_grey() -> None:
    colour, grey = np.zeros((3, 2, 4)), np.ones((1, 2, 4)) * 0.5
    colour[0] = 1
    assert to_picture(colour).shape == (2, 4, 3)
    assert to_picture(colour)[0, 0].tolist() == [255, 0, 0]
    assert to_picture(grey).shape == (2, 4)
    assert to_picture(grey)[0, 0] == 128


COLUMNS = [
    TableColumn("age", 0, mean=40.0, std=10.0, guess=40.0, spread=10.0),
    TableColumn("town", 1, ("Bonn", "Kiel"), guess=1.0),
]
LABEL = torch.zeros(1, dtype=torch.long)


@pytest.mark.parametrize("kind", SCORINGS)
def test_a_kind_measures_columns_that_the_file_has(kind: str) -> None:
    scoring = SCORINGS[kind]
    extra = scoring.extra_columns(Metrics())
    assert set(extra) <= set(EXTRA_COLUMNS)
    assert set(extra) <= set(RANGES)
    assert scoring.headline[0] in scoring.columns


def test_a_row_of_a_table(tmp_path: Path) -> None:
    scoring = TableScoring(Metrics(), COLUMNS)
    true, found = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.9, 0.2, 0.3]])
    (score,) = scoring.scores(GroundTruth(true, LABEL), Reconstruction(found, LABEL))
    assert (score["right"], score["right_of_guess"], score["success"]) == (0.5, 0.0, 0)
    assert score["error"] == pytest.approx(0.1, abs=1e-6)
    assert set(scoring.extra_columns(Metrics())) <= set(score)
    assert "columns" not in score
    for original, expected in (
        (
            true[0],
            [["age", "49", "50", "1", "40", "0"], ["town", "Kiel", "Bonn", "0", "Kiel", "0"]],
        ),
        (None, [["age", "49", "", "", "40", ""], ["town", "Kiel", "", "", "Kiel", ""]]),
    ):
        scoring.keep(found[0], original, tmp_path / "row.csv")
        header, *rows = csv.reader((tmp_path / "row.csv").open(encoding="utf-8"))
        assert header == ["column", "found", "true", "right", "guess", "guess_right"]
        assert rows == expected


def test_a_sequence(tmp_path: Path) -> None:
    scoring = TokenScoring(Metrics())
    true, found = torch.tensor([[7, 3, 44]]), torch.tensor([[7, -1, 44]])
    (score,) = scoring.scores(GroundTruth(true, LABEL), Reconstruction(found, LABEL))
    assert score["token_accuracy"] == pytest.approx(2 / 3)
    assert (score["success"], score["exact"], score["precision"]) == (0, 0, 1.0)
    scoring.keep(found[0], true[0], tmp_path / "row.csv")
    rows = list(csv.reader((tmp_path / "row.csv").open(encoding="utf-8")))
    assert rows == [
        ["position", "found", "true"],
        ["0", "7", "7"],
        ["1", "", "3"],
        ["2", "44", "44"],
    ]
