"""findings.jsonl: written line by line, read back, and mended after a run was killed."""

from pathlib import Path

import pytest

from fedleak.errors import BadInput
from fedleak.runs.diagnostics import Findings, append_findings, read_findings, repair_findings

ONE = Findings("lenet+precode", "exact_nra", 1, 3, ("the first layer came off", 'of "<b>"'))
TWO = Findings("lenet", "rgap", 2, 0, ("nothing came off",))


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "findings.jsonl"
    assert read_findings(path) == []
    append_findings(path, ONE)
    append_findings(path, Findings("lenet", "iga", 1, 1, ()))  # has nothing to say
    append_findings(path, TWO)
    assert read_findings(path) == [ONE, TWO]


def test_half_a_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "findings.jsonl"
    append_findings(path, ONE)
    with path.open("a") as file:
        file.write('{"model": "lenet", "att')
    assert read_findings(path) == [ONE]


def test_repair_drops_half_lines_and_what_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "findings.jsonl"
    for found in (ONE, TWO):
        append_findings(path, found)
    with path.open("a") as file:
        file.write("3\n{")
    repair_findings(path, {TWO.attacked})
    assert path.read_text().count("\n") == 1
    assert read_findings(path) == [TWO]
    repair_findings(path, set())
    assert path.read_text() == ""
    repair_findings(tmp_path / "none.jsonl", set())
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize(
    "line",
    [
        "", "3", "null", "[]", "{", '{"model": "lenet"}', "[" * 100_000, "1" * 5000,
        '{"model": "m", "attack": "a", "round": 1, "client": 0, "findings": "text"}',
        '{"model": "m", "attack": "a", "round": 1, "client": 0, "findings": [1]}',
        '{"model": "m", "attack": "a", "round": 0, "client": 0, "findings": []}',
        '{"model": "m", "attack": "a", "round": Infinity, "client": 0, "findings": []}',
        '{"model": "m", "attack": "a", "round": 1, "client": true, "findings": []}',
        '{"model": 1, "attack": "a", "round": 1, "client": 0, "findings": []}',
    ],
)  # fmt: skip
def test_a_line_that_is_not_half_written_but_damaged(tmp_path: Path, line: str) -> None:
    path = tmp_path / "findings.jsonl"
    append_findings(path, ONE)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(BadInput, match=r"in line 2 of .*findings.jsonl, got") as caught:
        read_findings(path)
    assert len(str(caught.value)) < 500
    repair_findings(path, {ONE.attacked})
    assert read_findings(path) == [ONE]


def test_repair_of_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "findings.jsonl"
    append_findings(path, ONE)
    with path.open("ab") as file:
        file.write(b"\xff\xfe\n")
    with pytest.raises(BadInput, match=r"text in UTF-8 in .*findings.jsonl, got other bytes"):
        read_findings(path)
    repair_findings(path, {ONE.attacked})
    assert read_findings(path) == [ONE]
