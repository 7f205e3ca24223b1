"""diagnostics.jsonl: written line by line, read back, and repaired after a run was killed."""

from pathlib import Path

import pytest

from fedleak.errors import BadInput
from fedleak.runs.diagnostics import (
    Diagnostics,
    append_diagnostics,
    read_diagnostics,
    repair_diagnostics,
)

ONE = Diagnostics("lenet+precode", "exact_nra", 1, 3, ("the first layer came off", 'of "<b>"'))
TWO = Diagnostics("lenet", "rgap", 2, 0, ("nothing came off",))


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "diagnostics.jsonl"
    assert read_diagnostics(path) == []
    append_diagnostics(path, ONE)
    append_diagnostics(path, Diagnostics("lenet", "iga", 1, 1, ()))  # has nothing to say
    append_diagnostics(path, TWO)
    assert read_diagnostics(path) == [ONE, TWO]


def test_half_a_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "diagnostics.jsonl"
    append_diagnostics(path, ONE)
    with path.open("a") as file:
        file.write('{"model": "lenet", "att')
    assert read_diagnostics(path) == [ONE]


def test_repair_drops_half_lines_and_what_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "diagnostics.jsonl"
    for found in (ONE, TWO):
        append_diagnostics(path, found)
    with path.open("a") as file:
        file.write("3\n{")
    repair_diagnostics(path, {TWO.key})
    assert path.read_text().count("\n") == 1
    assert read_diagnostics(path) == [TWO]
    repair_diagnostics(path, set())
    assert path.read_text() == ""
    repair_diagnostics(tmp_path / "none.jsonl", set())
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
    path = tmp_path / "diagnostics.jsonl"
    append_diagnostics(path, ONE)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(BadInput, match=r"in line 2 of .*diagnostics.jsonl, got") as caught:
        read_diagnostics(path)
    assert len(str(caught.value)) < 500
    repair_diagnostics(path, {ONE.key})
    assert read_diagnostics(path) == [ONE]


def test_repair_of_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "diagnostics.jsonl"
    append_diagnostics(path, ONE)
    with path.open("ab") as file:
        file.write(b"\xff\xfe\n")
    with pytest.raises(BadInput, match=r"text in UTF-8 in .*diagnostics.jsonl, got other bytes"):
        read_diagnostics(path)
    repair_diagnostics(path, {ONE.key})
    assert read_diagnostics(path) == [ONE]


def test_the_file_of_an_older_run_is_read(tmp_path: Path) -> None:
    append_diagnostics(tmp_path / "findings.jsonl", ONE)
    path = tmp_path / "diagnostics.jsonl"
    assert read_diagnostics(path) == [ONE]
    append_diagnostics(path, TWO)
    assert read_diagnostics(path) == [TWO]
