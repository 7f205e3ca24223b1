"""Whatever is damaged in a run's folder, its readers end in one sentence, within their memory.

The damages are made in a process of their own, with a limit on its memory; see tests/damage.py.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedleak.errors import BadInput
from tests.damage import KINDS, attempt

ROOT = Path(__file__).parents[2]


def damaged(folder: Path, seed: int, count: int) -> dict[str, dict[str, object]]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.damage", folder, seed, count]
    ended = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=1800
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


def check(found: dict[str, dict[str, object]]) -> None:
    assert found.keys() == KINDS.keys()
    for kind, result in found.items():
        assert not result["wrong"], f"{kind}: {result['wrong'][0]}"
        # Damages that nobody noticed would prove nothing.
        assert result["refused"] > 0, kind


def test_each_kind_of_file_is_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    check(damaged(tmp_path, seed=0, count=12))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_many_damages(tmp_path: Path, seed: int) -> None:
    check(damaged(tmp_path, seed, count=150))


def write_first(where: Path) -> None:
    (where / "written").touch()
    raise BadInput("Expected nothing, got something.")


def in_two_lines(where: Path) -> None:
    raise BadInput("Expected one line,\ngot two.")


def with_a_mistake(where: Path) -> None:
    raise KeyError("model")


@pytest.mark.parametrize(
    ("reader", "told"),
    [(write_first, "written"), (in_two_lines, "no sentence"), (with_a_mistake, "KeyError")],
)
def test_the_test_notices_what_it_is_for(tmp_path: Path, reader: object, told: str) -> None:
    (tmp_path / "run").mkdir()
    accepted, wrong = attempt(reader, tmp_path / "run")
    assert not accepted
    assert told in wrong
