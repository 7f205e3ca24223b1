"""Numeric text tables, read in chunks."""

from pathlib import Path

import numpy as np
import pytest

from fedleak.data.lastfm import LastFM
from fedleak.data.movielens import MovieLens
from fedleak.data.steam import Steam
from fedleak.data.text_tables import Column, Layout, read_pairs, read_table
from fedleak.errors import BadInput


def test_an_invalid_row_in_a_later_chunk_is_reported_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedleak.data.text_tables.CHUNK_LINES", 3)
    path = tmp_path / "u.data"
    path.write_text("1\t2\t4\t0\n" * 7 + "1\ttwo\t4\t0\n", encoding="utf-8")
    with pytest.raises(BadInput, match="line 8 of"):
        MovieLens(path=str(path)).load()
    path.write_text("1\t2\t4\t0\n" * 7, encoding="utf-8")
    users, items = MovieLens(path=str(path)).load()
    assert (users.tolist(), items.tolist()) == ([1] * 7, [2] * 7)


def test_a_line_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "u.data"
    path.write_text("1\t2\t4\n" + "1" * 1001 + "\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"at most 1,000 characters in line 2 of .*u.data, got more"):
        MovieLens(path=str(path)).load()
    path.write_text("1,G,play,1,0\n1," + "G" * 1001, encoding="utf-8")
    with pytest.raises(BadInput, match=r"at most 1,000 characters in line 2 of .*u.data, got more"):
        Steam(path=str(path)).load()
    artists = tmp_path / "artists.dat"
    artists.write_text("id\tname\n" + "1" * 5000 + "\tPortishead\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"at most 1,000 characters in line 2 of .*artists.dat"):
        LastFM(path=str(path), artists=str(artists)).item_names()


LAYOUT = Layout(
    (Column("user", 1, "i8"), Column("item", 0, "i8"), Column("value", 3, "f4")),
    delimiter=";",
    header=True,
)


def test_columns_are_read_by_position(tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    path.write_text("item;user;text;value\n5;1;x;0.5\n\n6;2;y;2\n", encoding="utf-8")
    (chunk,) = read_table(path, LAYOUT)
    assert chunk.dtype.names == ("user", "item", "value")
    assert chunk.tolist() == [(1, 5, 0.5), (2, 6, 2.0)]
    assert chunk["value"].dtype == np.float32
    users, items = read_pairs(path, LAYOUT, above=1)
    assert (users.tolist(), items.tolist()) == ([2], [6])


def test_the_layout_is_described_in_messages(tmp_path: Path) -> None:
    assert LAYOUT.describe() == "numbers for user, item, value between `;`"
    path = tmp_path / "table.txt"
    path.write_text("item;user;text;value\n5;1;x;0.5\n6;2;y;inf\n", encoding="utf-8")
    sentence = (
        r"Expected numbers for user, item, value between `;` in line 3 of .*, got `6;2;y;inf`"
    )
    with pytest.raises(BadInput, match=sentence):
        list(read_table(path, LAYOUT))
    path.write_text("item;user;text;value\n5;1;x;0.5\n", encoding="utf-8")
    with pytest.raises(BadInput, match="at least one row that counts"):
        read_pairs(path, LAYOUT, above=1)
