"""Numeric text tables, read in chunks."""

from pathlib import Path

import pytest

from fedleak.data.lastfm import LastFM
from fedleak.data.movielens import MovieLens
from fedleak.data.steam import Steam
from fedleak.errors import BadInput


def test_a_bad_row_is_named_in_a_later_piece(
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


def test_a_line_without_end(tmp_path: Path) -> None:
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
