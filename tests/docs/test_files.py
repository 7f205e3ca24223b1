"""reference/files.md lists the files of a run and of a sweep, and no other."""

import re
from pathlib import Path

from fedleak.runs.folder import RunFolder
from fedleak.runs.results import COLUMNS
from fedleak.runs.scoring import EXTRA_COLUMNS
from fedleak.sweep import SweepFolder

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "files.md"


def listed(title: str) -> set[str]:
    """The names in the first column of the first table below a title."""
    section = PAGE.read_text(encoding="utf-8").partition(f"# {title}\n")[2].partition("\n#")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def paths_of(folder: RunFolder | SweepFolder, root: Path) -> set[str]:
    """The public paths of a folder, relative to it."""
    found = {value for name, value in vars(folder).items() if not name.startswith("_")} - {root}
    return {str(value.relative_to(root)) for value in found}


def test_files_of_a_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    expected = paths_of(folder, tmp_path) | {"report.html"}
    expected |= {
        str(path.relative_to(tmp_path))
        for path in (
            folder.updates() / "r0001-global.safetensors",
            folder.updates() / "r0001-c0003.safetensors",
            folder.truth() / "r0001-c0003.safetensors",
            folder.sent() / "r0001-c0003.safetensors",
            folder.readings() / "r0002-c0003.safetensors",
            folder.checkpoint(),
        )
    }
    assert {name.rstrip("/") for name in listed("Files of a run")} == expected


def test_columns_of_the_results() -> None:
    assert listed("results.csv") == set(COLUMNS)
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in EXTRA_COLUMNS)


def test_files_of_a_sweep(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    written_after = {"results.md", "table.csv", "rounds.csv"}
    expected = paths_of(folder, tmp_path) | written_after
    expected |= {f"{folder.run('NAME').path.relative_to(tmp_path)}/"}
    assert listed("A sweep's folder") == expected
