"""Recommender data: the files' formats, the split by users, and what it costs in memory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedleak.data.interactions import split_users
from fedleak.data.lastfm import LastFM
from fedleak.data.movielens import MovieLens
from fedleak.data.planted import PlantedGroups
from fedleak.data.recommender import RecommenderData
from fedleak.data.steam import Steam
from fedleak.errors import BadInput

ROOT = Path(__file__).parents[2]
# User -> items; user 9 has too few, and item 70 is one of user 9's alone.
TOY = {user: [10 * user + item for item in range(4)] + [5, 6] for user in range(1, 9)} | {
    9: [5, 70]
}


def pairs(table: dict[int, list[int]]) -> tuple[np.ndarray, np.ndarray]:
    users = np.repeat(list(table), [len(items) for items in table.values()])
    return users, np.concatenate(list(table.values()))


# ------------------------------------------------------------------------------------- the split


def test_split_by_hand() -> None:
    split = split_users(*pairs(TOY), held_out=2)
    order = np.arange(1, 9)[np.random.RandomState(98765).permutation(8)]
    assert split.train.users.tolist() == order[:4].tolist()
    assert split.validation.users.tolist() == order[4:6].tolist()
    assert split.test.users.tolist() == order[6:].tolist()
    assert split.items.tolist() == sorted({item for user in order[:4] for item in TOY[user]})
    for row, user in enumerate(split.train.users):
        vector, label = split.train[row]
        assert vector.dtype == torch.float32
        assert label == 0
        assert sorted(split.items[vector.numpy() == 1]) == sorted(TOY[user])
        assert vector.sum() == len(TOY[user])
    # Of a held-out user the two items that training users have too are left, too few to be hidden.
    given_items, hidden = split.test[0]
    assert split.items[given_items.numpy() == 1].tolist() == [5, 6]
    assert hidden.sum() == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.floats(0.1, 0.6))
def test_no_item_is_lost_and_none_is_given_away(seed: int, held_out: int, share: float) -> None:
    random = np.random.default_rng(seed)
    table = {
        user: sorted(random.choice(12, size=random.integers(1, 12), replace=False))
        for user in range(40)
    }
    users, items = pairs(table)
    doubled = np.concatenate([users, users]), np.concatenate([items, items])
    split = split_users(*doubled, held_out=held_out, hidden=share, seed=seed % 1000)
    active = {user for user, owned in table.items() if len(owned) >= 5}
    parts = [split.train.users, split.validation.users, split.test.users]
    assert sorted(np.concatenate(parts)) == sorted(active)
    for part in (split.validation, split.test):
        assert len(part) == held_out
        for row, user in enumerate(part.users):
            told, hidden = part[row]
            assert not (told * hidden).any()
            owned = sorted(set(table[user]) & set(split.items))
            assert sorted(split.items[(told + hidden).numpy() == 1]) == owned
            expected = int(share * len(owned)) if len(owned) >= 5 else 0
            assert hidden.sum() == expected


def test_the_split_is_that_of_its_seed() -> None:
    users, items = pairs(TOY)
    again = [split_users(users, items, held_out=2, seed=seed).train.users for seed in (1, 1, 2)]
    assert np.array_equal(again[0], again[1])
    assert not np.array_equal(again[0], again[2])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"held_out": 4}, "more than 8 users with at least 5 items.* got 8"),
        ({"held_out": 0}, "`held_out` to be at least 1, got 0"),
        ({"least": 0}, "`least` to be at least 1, got 0"),
        ({"hidden": 1.0}, "`hidden` to be above 0 and below 1, got 1.0"),
    ],
)
def test_bad_splits(change: dict[str, float], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        split_users(*pairs(TOY), **({"held_out": 2} | change))  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------- the files


def lastfm_file(folder: Path, rows: str) -> Path:
    path = folder / "user_artists.dat"
    path.write_text(f"userID\tartistID\tweight\n{rows}", encoding="utf-8")
    return path


def written(kind: str, folder: Path) -> RecommenderData:
    """The toy in a format of its own, with rows that must not count."""
    rows = [(user, item) for user, items in TOY.items() for item in items]
    if kind == "lastfm":
        text = "".join(f"{user}\t{item}\t7\n" for user, item in rows) + "1\t11\t0\n"
        return LastFM(path=str(lastfm_file(folder, text + "\n")), held_out=2)
    if kind == "steam":
        text = "".join(
            f'{user},"Game, {item}",{kind},1.5,0\n'
            for user, item in rows
            for kind in ("purchase", "play")
        )
        (folder / "steam-200k.csv").write_text(text, encoding="utf-8")
        return Steam(path=str(folder / "steam-200k.csv"), held_out=2)
    between, name, header = {
        "movielens 1M": ("::", "ratings.dat", ""),
        "movielens 100K": ("\t", "u.data", ""),
        "movielens 20M": (",", "ratings.csv", "userId,movieId,rating,timestamp\n"),
    }[kind]
    lines = [between.join([str(u), str(i), "4", "978300760"]) for u, i in rows]
    lines += [between.join(["1", str(item), "3.5", "1"]) for item in (80, 81)]
    (folder / name).write_text(header + "\n".join(lines), encoding="utf-8")
    return MovieLens(path=str(folder / name), held_out=2)


FORMATS = ("lastfm", "steam", "movielens 1M", "movielens 100K", "movielens 20M")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_says_the_same(kind: str, tmp_path: Path) -> None:
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
def test_loaders_hand_out_dense_batches(batches: str) -> None:
    data = PlantedGroups(users=60, held_out=7, batch_size=5)
    first, second = next(iter(getattr(data, f"{batches}_dataloader")()))
    assert first.shape == (5, *data.input_shape)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert second.shape == ((5,) if batches == "train" else first.shape)


def test_counts_of_planted_groups() -> None:
    data = PlantedGroups(users=100, held_out=10, items_per_user=9)
    assert data.num_users == 100
    assert len(data.train_set) == 80
    assert data.train_set.matrix.nnz == 80 * 9
    # Far more than the fourth part that users of no taste would have.
    items = data.split.items
    own = [
        np.bincount(items[data.train_set.matrix[[row]].indices] % 4, minlength=4).max() / 9
        for row in range(80)
    ]
    assert np.mean(own) > 0.7


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


# ------------------------------------------------------------------------------- what is refused

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
def test_a_bad_row_is_named(kind: str, name: str, text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=sentence):
        KINDS[kind](path=str(tmp_path / name)).load()


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


@pytest.mark.parametrize("kind", [MovieLens, LastFM, Steam])
def test_files_that_are_no_text(kind: type[RecommenderData], tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    with pytest.raises(BadInput, match=r"file at .*x.dat, got: No such file"):
        kind(path=str(path)).load()  # type: ignore[call-arg]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="UTF-8"):
        kind(path=str(path)).load()  # type: ignore[call-arg]


def test_settings_out_of_range() -> None:
    with pytest.raises(BadInput, match=r"`path` to end in one of .dat, .csv, .data, got `r.txt`"):
        MovieLens(path="r.txt")
    with pytest.raises(BadInput, match="`above` to be from 0 to 5, got 6"):
        MovieLens(above=6)
    with pytest.raises(BadInput, match="`groups` to be at least 2, got 1"):
        PlantedGroups(groups=1)
    with pytest.raises(BadInput, match=r"`items_per_user` to be from 5 to 50, .* got 51"):
        PlantedGroups(items_per_user=51)
    with pytest.raises(BadInput, match="`users` to be more than twice the 50 held out, got 100"):
        PlantedGroups(users=100)
    with pytest.raises(BadInput, match="`batch_size` to be at least 1, got 0"):
        PlantedGroups(batch_size=0)


# ------------------------------------------------------------------------------------ the real one


def file_of(folder: Path, name: str) -> str:
    """A file of real data; a test that asks for one that is not there is skipped."""
    if not (folder / name).is_file():
        pytest.skip(f"no {name} among the real data")
    return str(folder / name)


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


def test_the_artists_of_lastfm_have_names(data_folder: Path) -> None:
    files = ("lastfm_user_artists.dat", "lastfm_artists.dat")
    path, artists = (file_of(data_folder, name) for name in files)
    names = LastFM(path=path, artists=artists).item_names()
    assert sum(name.isdecimal() for name in names) < 100


@pytest.mark.slow
def test_the_size_of_movielens_20m_fits_in_two_gigabytes(tmp_path: Path) -> None:
    """138,000 users, 20,000 items, 20 million ratings, of which ten million count."""
    path = tmp_path / "ratings.csv"
    random = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("userId,movieId,rating,timestamp\n")
        for _ in range(40):
            users = random.integers(138_000, size=500_000)
            films = random.integers(20_000, size=500_000)
            ratings = random.integers(6, 10, size=500_000) / 2  # from 3.0 to 4.5
            np.savetxt(
                file, np.stack([users, films, ratings], axis=1), fmt=["%d", "%d", "%.1f"],
                delimiter=",",
            )  # fmt: skip
    code = (
        "import resource, sys; from fedleak.data.movielens import MovieLens\n"
        "data = MovieLens(path=sys.argv[1], held_out=10000); print(data.describe())\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, cwd=ROOT
    )
    counts, peak = done.stdout.splitlines()
    assert counts.startswith("movielens: 138,000 users, 20,000 items, ")
    assert int(peak) < 2 * 1024**2  # kilobytes
