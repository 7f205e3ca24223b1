"""The site builds without a warning, and shows what was generated."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("sphinx", "furo", "myst_nb")


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED),
    reason=f"the extra `docs` ({', '.join(NEEDED)}) is not installed",
)
def test_it_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going", "-b", "html"]
    found = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), str(ROOT / "docs"), str(tmp_path / "html")],
        capture_output=True, text=True, timeout=900, cwd=ROOT,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-5000:]

    def shown(page: str) -> str:
        return re.sub(r"<[^>]+>", "", (tmp_path / "html" / page).read_text(encoding="utf-8"))

    assert "exact_nra" in shown("reference/attacks.html")
    assert "federation.learning_rate_decay" in shown("reference/configuration.html")
    assert "usage: fedleak sweep STUDY" in shown("reference/command-line.html")
    assert "class fedleak.attacks.IGA(" in shown("reference/packages/fedleak.attacks.html")
    pictures = list((tmp_path / "html" / "_images").glob("*.png"))
    assert {"demo.png", "exact.png", "fedvae.png"} <= {path.name for path in pictures}
    notebook = (tmp_path / "html" / "experiments" / "nra.html").read_text(encoding="utf-8")
    assert 'class="cell_output' in notebook
