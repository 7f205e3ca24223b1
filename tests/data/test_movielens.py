"""The files of MovieLens."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedleak.data.movielens import MovieLens
from fedleak.errors import BadInput

ROOT = Path(__file__).parents[2]


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


def test_settings_out_of_range() -> None:
    with pytest.raises(BadInput, match=r"`path` to end in one of .dat, .csv, .data, got `r.txt`"):
        MovieLens(path="r.txt")
    with pytest.raises(BadInput, match="`above` to be from 0 to 5, got 6"):
        MovieLens(above=6)


def test_films_count_above_the_threshold(tmp_path: Path) -> None:
    path = tmp_path / "u.data"
    path.write_text("1\t10\t3\t0\n1\t11\t4\t0\n2\t10\t3.5\t0\n2\t12\t5\t0\n", encoding="utf-8")
    for above, expected in ((3.5, [11, 12]), (3.0, [11, 10, 12]), (4.0, [12])):
        _, items = MovieLens(path=str(path), above=above).load()
        assert items.tolist() == expected
