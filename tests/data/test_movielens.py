"""The files of MovieLens."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
