"""What the tests of the studies share."""

import csv
import importlib.util
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import yaml

from fedleak import sweep
from fedleak.cli import main as cli
from fedleak.sweep import run_sweep
from tests.federation.runs import in_process

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
Rows = list[dict[str, str]]


def rows_of(path: Path) -> Rows:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class CellHere:
    """A cell that runs in this process, whose clients do too: no imports, and no engine to start.

    It has ended when it has been made; see :class:`fedleak.sweep.processes.CellProcess`.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], lock: Path) -> None:
        said = StringIO()
        with in_process(), redirect_stdout(said), redirect_stderr(said):
            try:
                cli.main(command[command.index("fedleak.cli.main") + 1 :])
            except SystemExit as end:
                self._code = end.code if isinstance(end.code, int) else int(end.code is not None)
        self._lines = said.getvalue().splitlines()

    def poll(self) -> int:
        return self._code

    def lines(self) -> list[str]:
        return self._lines[-20:]


def swept(study: Path, *, on_ray: bool = False) -> Rows:
    """The rows of a sweep, made in ``sweep`` of the working folder."""
    launch = {} if on_ray else {"launch": CellHere}
    with (
        mock.patch.object(sweep, "run_sweep", partial(run_sweep, **launch)),
        pytest.raises(SystemExit) as end,
    ):
        cli.main(["sweep", str(study), "--output", "sweep"])
    assert end.value.code in (0, None)
    return rows_of(Path("sweep/results.csv"))


def script(path: Path) -> ModuleType:
    """A study's script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Studies have files of the same names, of which a script imports those of its own folder.
    names = [file.stem for file in path.parent.glob("*.py")]
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(others)
    return module


def study_and_smoke(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both grids of a folder."""
    study, smoke = (
        yaml.safe_load((folder / name).read_text()) for name in ("study.yaml", "smoke.yaml")
    )
    return study, smoke


def check_smoke_is_of_the_study(folder: Path) -> None:
    """The smoke has the study's attacks and bottlenecks, and some of its models."""
    study, smoke = study_and_smoke(folder)
    attacks = [
        item if isinstance(item, str) else item["class_path"] for item in smoke["base"]["attacks"]
    ]
    assert attacks == study["base"]["attacks"]
    assert smoke["grid"]["bottleneck"] == study["grid"]["bottleneck"]
    assert set(smoke["grid"]["model"]) <= set(study["grid"]["model"])


def check_means_of_images(results: Path) -> None:
    """Every mean of table.csv is that of its rows in results.csv."""
    rows, table = rows_of(results / "results.csv"), rows_of(results / "table.csv")
    assert table
    for entry in table:
        values = [
            float(row["ssim"])
            for row in rows
            if all(row[name] == entry[name] for name in ("attack", "model", "dataset", "defense"))
        ]
        assert len(values) == int(entry["n"])
        assert float(entry["ssim_mean"]) == pytest.approx(statistics.mean(values), abs=1e-4)


def spread(values: list[float]) -> str:
    """Mean and standard deviation, and how many reach an SSIM of 0.6, as the READMEs have them."""
    leaked = sum(value >= 0.6 for value in values)
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}, {leaked}/{len(values)}"
