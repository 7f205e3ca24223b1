"""The files of Last.fm."""

from pathlib import Path

import pytest

from fedleak.data.lastfm import LastFM
from fedleak.errors import BadInput
from tests.data.recommender_files import file_of, written


def test_artists_have_names(tmp_path: Path) -> None:
    data = written("lastfm", tmp_path)
    artists = tmp_path / "artists.dat"
    artists.write_bytes(b"id\tname\turl\n5\tPortishead\thttp://x\n6\tMot\xf6rhead\n")
    named = LastFM(path=data.path, artists=str(artists), held_out=2)  # type: ignore[attr-defined]
    names = dict(zip(named.split.items.tolist(), named.item_names(), strict=True))
    assert names[5] == "Portishead"
    assert names[6] == "Mot\ufffdrhead"
    assert {names[item] for item in names if item > 6} == {str(i) for i in names if i > 6}
    artists.write_text("id\tname\n5 Portishead\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"id and name between tabs in line 2 of .*`5 Portishead`"):
        named.item_names()


def test_the_artists_of_lastfm_have_names(data_folder: Path) -> None:
    files = ("lastfm_user_artists.dat", "lastfm_artists.dat")
    path, artists = (file_of(data_folder, name) for name in files)
    names = LastFM(path=path, artists=artists).item_names()
    assert sum(name.isdecimal() for name in names) < 100
