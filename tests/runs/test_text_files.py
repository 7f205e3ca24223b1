"""Text files of a run's folder: size, encoding, JSON."""

import math
from pathlib import Path

import pytest

from fedleak.errors import BadInput
from fedleak.runs.text_files import decoded, is_count, is_number, parse_json, read_text, write_whole


def test_text_comes_back_with_its_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("Bäume\r\nund\n".encode())
    assert read_text(path) == "Bäume\r\nund\n"
    assert read_text(path, largest=path.stat().st_size) == "Bäume\r\nund\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"12345", r"at most 4 bytes in .*file, got 5\."),
        (b"\xff", r"text in UTF-8 in .*file, got other bytes at 0\."),
        (b"a\0", "text in .*file, got a NUL character"),
        (None, r"a file at .*file, got: No such file"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=f"Expected {sentence}"):
        read_text(path, largest=4)


def test_bytes_that_are_cut_within_a_letter() -> None:
    with pytest.raises(BadInput, match="got other bytes at 1"):
        decoded("bä".encode()[:-1], Path("file"))


def test_json() -> None:
    assert parse_json('{"a": [1, null, "b"]}', "file") == {"a": [1, None, "b"]}
    for text in ("{", "NaN", "[Infinity]", "-Infinity", "[" * 100_000):
        with pytest.raises(BadInput, match=r"Expected JSON in line 2 of file, got: "):
            parse_json(text, "line 2 of file")


def test_counts() -> None:
    assert [is_count(value) for value in (0, 5, 10**9 - 1)] == [True] * 3
    assert not any(is_count(value) for value in (-1, 10**9, 1.0, True, "1", None))
    assert is_count(1, 1)
    assert not is_count(0, 1)


def test_numbers() -> None:
    assert all(is_number(value) for value in (0, -1.5, 10**299))
    others = (math.nan, math.inf, 10**400, True, "1", None)
    assert not any(is_number(value) for value in others)


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("report.part", "report.html"):
        (folder / name).symlink_to(precious)
    assert write_whole(folder / "report.html", "page \ud800").read_text() == "page \\ud800"
    assert precious.read_text() == "mine"
    assert not (folder / "report.html").is_symlink()
    assert not (folder / "report.part").exists()


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(BadInput, match=r"Expected to write .*report.html, got: "):
        write_whole(tmp_path / "report.html", "page")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
