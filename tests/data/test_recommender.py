"""Recommender data sets: all formats give the same interactions, and invalid files are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedleak.data.interactions import split_users
from fedleak.data.lastfm import LastFM
from fedleak.data.movielens import MovieLens
from fedleak.data.planted import PlantedGroups
from fedleak.data.recommender import RecommenderData
from fedleak.data.steam import Steam
from fedleak.errors import BadInput
from tests.data.recommender_files import FORMATS, TOY, file_of, pairs, written


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_interactions(kind: str, tmp_path: Path) -> None:
    data = written(kind, tmp_path)
    expected = split_users(*pairs(TOY), held_out=2)
    assert data.train_set.users.tolist() == expected.train.users.tolist()
    assert data.input_shape == (len(expected.items),)
    names = data.item_names()
    for row in range(len(expected.train)):
        owned = {names[column] for column in np.flatnonzero(data.train_set[row][0])}
        plain = {str(expected.items[column]) for column in np.flatnonzero(expected.train[row][0])}
        assert owned == ({f"Game, {item}" for item in plain} if kind == "steam" else plain)
    assert data.describe().split(": ")[1].startswith(f"8 users, {len(names)} items, ")


@pytest.mark.parametrize("batches", ["train", "val", "test"])
def test_loaders_give_dense_batches(batches: str) -> None:
    data = PlantedGroups(users=60, held_out=7, batch_size=5)
    first, second = next(iter(getattr(data, f"{batches}_dataloader")()))
    assert first.shape == (5, *data.input_shape)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert second.shape == ((5,) if batches == "train" else first.shape)


BAD_ROWS = [
    ("movielens", "ratings.dat", "1::2::4::0\n1::x::4::0\n", r"line 2 of .* got `1::x::4::0`"),
    ("movielens", "ratings.dat", "1::2::4::0\n\n1::2\n", r"between `::` in line 3 of .*`1::2`"),
    ("movielens", "u.data", "1\t2\t4\t0\n1\t2\tnan\t0\n", r"between tabs in line 2"),
    ("movielens", "ratings.csv", "u,m,r,t\n1,2,4,0\n1;2;4;0\n", r"between commas in line 3"),
    ("movielens", "ratings.dat", "1::2::4::0\n99999999999999999999::2::4::0\n", r"in line 2"),
    ("movielens", "ratings.dat", "1::2::2::0\n", r"at least one row that counts in .*, found none"),
    ("lastfm", "a.dat", "userID\tartistID\tweight\n1\t2\n", r"userID, artistID, weight .* line 2"),
    ("lastfm", "a.dat", "", r"at least one row that counts in .*, found none"),
    ("steam", "s.csv", "1,G,purchase,1,0\n1,G,sold,1,0\n", r"line 2 of .*`1,G,sold,1,0`"),
    ("steam", "s.csv", '1,"G\nH",play,1,0\nx,G,play,1,0\n', r"line 3 of"),
    ("steam", "s.csv", "1,G\n", r"line 1 of .*`1,G`"),
    ("steam", "s.csv", "1,G,play,1,0\n1,G,play,long,0\n", r"line 2 of .*`1,G,play,long,0`"),
    ("steam", "s.csv", "99999999999999999999,G,play,1,0\n", r"line 1 of"),
    ("steam", "s.csv", "", r"at least one row in .*, found none"),
]
KINDS = {"movielens": MovieLens, "lastfm": LastFM, "steam": Steam}


@pytest.mark.parametrize(("kind", "name", "text", "sentence"), BAD_ROWS)
def test_an_invalid_row_is_reported_by_its_line(
    kind: str, name: str, text: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=sentence):
        KINDS[kind](path=str(tmp_path / name)).load()


@pytest.mark.parametrize("kind", [MovieLens, LastFM, Steam])
def test_missing_and_binary_files(kind: type[RecommenderData], tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    with pytest.raises(BadInput, match=r"file at .*x.dat, found none"):
        kind(path=str(path)).load()  # type: ignore[call-arg]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="UTF-8"):
        kind(path=str(path)).load()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("kind", "file", "users", "items", "held_out"),
    [
        (LastFM, "lastfm_user_artists.dat", 1877, 16423, 100),
        (MovieLens, "ratings.dat", 6034, 3520, 200),
        (Steam, "steam-200k.csv", 3757, 4789, 500),
    ],
    ids=["lastfm", "movielens-1m", "steam"],
)
def test_the_papers_counts(
    data_folder: Path, kind: Any, file: str, users: int, items: int, held_out: int
) -> None:
    data = kind(path=file_of(data_folder, file), held_out=held_out)
    assert (data.num_users, data.input_shape) == (users, (items,))
    assert len(data.validation_set) == len(data.test_set) == held_out
    assert f"{users:,} users, {items:,} items, " in data.describe()


def test_batch_size_and_number_of_users_held_out() -> None:
    with pytest.raises(BadInput, match="`batch_size` to be at least 1, got 0"):
        PlantedGroups(batch_size=0)
    with pytest.raises(BadInput, match="`held_out` to be at least 1, got 0"):
        PlantedGroups(held_out=0)
