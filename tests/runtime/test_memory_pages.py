"""Large pages are requested only where processes are started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedleak.runtime.memory_pages import LARGE_PAGES, use_large_pages
from fedleak.sweep import Choice, Study, run_sweep

# Ends as the command line does, after it has printed the help of a command.
COMMAND = """
import os
from fedleak.cli.main import main
try:
    main(["list", "--help"])
except SystemExit:
    print(*(os.environ.get(name) for name in ("THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES")))
"""


def test_variables_that_are_set_stay() -> None:
    environment = {"THP_MEM_ALLOC_ENABLE": "0", "HOME": "/"}
    use_large_pages(environment)
    assert environment == {
        "THP_MEM_ALLOC_ENABLE": "0", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "HOME": "/",
    }  # fmt: skip


@pytest.mark.parametrize("chosen", [None, "0"])
def test_the_command_line_sets_them(chosen: str | None) -> None:
    before = {name: value for name, value in os.environ.items() if name not in LARGE_PAGES}
    given = {} if chosen is None else {"THP_MEM_ALLOC_ENABLE": chosen}
    found = subprocess.run(
        [sys.executable, "-c", COMMAND],
        env=before | given, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.splitlines()[-1] == f"{chosen or 1} glibc.malloc.hugetlb=1"


def test_the_runs_of_a_sweep_are_started_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LARGE_PAGES:
        monkeypatch.delenv(name, raising=False)
    base = {"data": "photos", "model": "smlp"}
    study = Study(base=base, axes={"seed": (Choice("0", {"seed": 0}),)})
    told = tmp_path / "told"
    code = f"import os; open({str(told)!r}, 'w').write(os.environ['THP_MEM_ALLOC_ENABLE'])"
    run_sweep(
        study, tmp_path / "out",
        command=lambda _settings, _folder, _resume: [sys.executable, "-c", code],
    )  # fmt: skip
    assert told.read_text() == "1"
    assert "THP_MEM_ALLOC_ENABLE" not in os.environ
