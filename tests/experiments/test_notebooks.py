"""The notebooks of experiments/, run in small; as committed, they hold their outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "experiments").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
SLOW = {"active_server", "precode"}


def test_all_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "active_server",
        "exact",
        "exact_batches",
        "fedvae",
        "nra",
        "precode",
    ]


def code_cells(path: Path) -> list[dict[str, Any]]:
    """The notebook's cells of code."""
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.stem not in SLOW], ids=lambda path: path.stem
)
def test_its_code_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell in this process, which has imported already what a kernel would import."""
    monkeypatch.setenv("FEDLEAK_SMOKE", "1")
    monkeypatch.chdir(path.parent)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(path), 1):
        exec(compile("".join(cell["source"]), f"{path.stem}[{number}]", "exec"), names)


@pytest.mark.slow
@every_notebook
def test_it_runs(path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbmake",
        "-q",
        "-p",
        "no:cacheprovider",
        str(path),
    ]
    settings = os.environ | {"FEDLEAK_SMOKE": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=settings, cwd=ROOT
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-2000:]


@every_notebook
def test_it_is_committed_with_its_outputs(path: Path) -> None:
    cells = code_cells(path)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/markdown"} <= kinds
    assert not [output for output in outputs if output["output_type"] == "error"]
    text = path.read_text()
    assert "/tmp/" not in text
    assert "/home/" not in text
    assert "site-packages" not in text
