"""A toy recommender data set, as ids and in the format of each file, to share between tests."""

from pathlib import Path

import numpy as np
import pytest

from fedleak.data.lastfm import LastFM
from fedleak.data.movielens import MovieLens
from fedleak.data.recommender import RecommenderData
from fedleak.data.steam import Steam

# User -> items; user 9 has too few, and item 70 is one of user 9's alone.
TOY = {user: [10 * user + item for item in range(4)] + [5, 6] for user in range(1, 9)} | {
    9: [5, 70]
}


def pairs(table: dict[int, list[int]]) -> tuple[np.ndarray, np.ndarray]:
    users = np.repeat(list(table), [len(items) for items in table.values()])
    return users, np.concatenate(list(table.values()))


def lastfm_file(folder: Path, rows: str) -> Path:
    path = folder / "user_artists.dat"
    path.write_text(f"userID\tartistID\tweight\n{rows}", encoding="utf-8")
    return path


def written(kind: str, folder: Path) -> RecommenderData:
    """The toy data set in one of the formats, with rows that must be ignored."""
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


def file_of(folder: Path, name: str) -> str:
    """A file of real data; a test that asks for one that is not there is skipped."""
    if not (folder / name).is_file():
        pytest.skip(f"no {name} among the real data")
    return str(folder / name)
