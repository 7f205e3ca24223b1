"""findings.jsonl: written line by line, read back, and mended after a run was killed."""

from pathlib import Path

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
