"""The table of reconstructed samples."""

import math
from pathlib import Path

import pytest

from fedleak.audit.results import (
    CANARY,
    append_rows,
    drop_rows,
    read_rows,
    repair_rows,
    rows_of,
    scores_of,
)
from fedleak.audit.truth_scores import Score
from fedleak.errors import BadInput

INPUTS = (3, "inputs")
SCORE = Score.of("r0001-c0000", "iga", [0.75, 0.25], [0.125, 0.125], 0.5, True)
LOST = Score.of("r0001-c0001", "analytic", [math.inf, 2.0], [1.0, math.nan], math.nan, False)
OWN = Score.of("canary", "rgap", [0.96875], [0.0], 1.0, True)


def written(path: Path) -> Path:
    for score in (SCORE, LOST):
        append_rows(path, rows_of(score, *INPUTS, "SSIM, 0 to 1"))
    append_rows(path, rows_of(OWN, 3, CANARY, "SSIM, 0 to 1"))
    return path


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = written(tmp_path / "results.csv")
    rows = read_rows(path)
    assert [(row.update, row.sample, row.samples) for row in rows] == [
        ("r0001-c0000", 0, 2), ("r0001-c0000", 1, 2), ("r0001-c0001", 0, 2),
        ("r0001-c0001", 1, 2), ("canary", 0, 1),
    ]  # fmt: skip
    assert rows[0].measure == "SSIM, 0 to 1"
    one, two = scores_of(rows, *INPUTS)
    assert one == SCORE
    assert one.value == 0.5
    assert two.value == 2.0  # the mean of the finite ones
    assert math.isnan(two.explained)
    assert not two.supported
    assert two.values[0] == math.inf
    assert scores_of(rows, 3, CANARY) == [OWN]
    assert read_rows(tmp_path / "none.csv") == []


def test_a_killed_audit_leaves_half_an_update(tmp_path: Path) -> None:
    path = written(tmp_path / "results.csv")
    text = path.read_text()
    append_rows(path, rows_of(Score.of("r0001-c0002", "iga", [0.5] * 3, [0.1] * 3, 1.0, True),
                              *INPUTS, "SSIM, 0 to 1")[:2])  # fmt: skip
    with path.open("a") as file:
        file.write("3,inputs,r0001-c0002,2,3,ig")
    assert len(read_rows(path)) == 7
    assert [row.update for row in repair_rows(path)].count("r0001-c0002") == 0
    assert path.read_text() == text
    drop_rows(path, CANARY)
    assert {row.question for row in read_rows(path)} == {"inputs"}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("3,inputs,r0001-c0000,0,1,iga,SSIM,much,0.1,1.0,1", "Expected numbers in line 2"),
        ("3,inputs,r0001-c0000,0,1,iga,SSIM", "Expected 11 cells in line 2"),
        ("3,inputs,../../etc,0,1,iga,SSIM,0.5,0.1,1.0,1", "a reconstructed sample of an audit"),
        ("9,inputs,r0001-c0000,0,1,iga,SSIM,0.5,0.1,1.0,1", "a reconstructed sample of an audit"),
        ("3,inputs,r0001-c0000,1,1,iga,SSIM,0.5,0.1,1.0,1", "a reconstructed sample of an audit"),
        ("3,secrets,r0001-c0000,0,1,iga,SSIM,0.5,0.1,1.0,1", "a reconstructed sample of an audit"),
        ("3,inputs,r0001-c0000,0,1,../iga,SSIM,0.5,0.1,1.0,1", "the attack in line 2"),
    ],
)
def test_a_damaged_table(line: str, sentence: str, tmp_path: Path) -> None:
    path = written(tmp_path / "results.csv")
    head = path.read_text().splitlines()[0]
    path.write_text(f"{head}\n{line}\n")
    with pytest.raises(BadInput, match=sentence):
        repair_rows(path)
    assert path.read_text() == f"{head}\n{line}\n"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(BadInput, match="Expected the columns rung, question"):
        read_rows(path)
