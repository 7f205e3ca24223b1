"""``python -m fedleak``, and what the console script says where the extras are missing."""

import subprocess
import sys

import pytest

WITHOUT = """
import runpy, sys
sys.modules[sys.argv.pop(1)] = None  # importing it fails as if it were not installed
sys.argv[0] = "fedleak"
runpy.run_module("fedleak", run_name="__main__")
"""


def test_the_package_is_the_command_line() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "fedleak", "list", "attacks"], capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert "rgap" in found.stdout


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("jsonargparse", "--help", "federation"),
        ("rich", "list", "federation"),
        ("pytorch_lightning", "run --data photos --model smlp", "federation"),
        ("jinja2", "report nowhere", "report"),
    ],
)
def test_a_missing_extra_is_one_sentence(missing: str, arguments: str, extra: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT, missing, *arguments.split()],
        capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 2
    assert found.stdout == ""
    assert " ".join(found.stderr.split()) == (
        f"fedleak: Expected the extra `{extra}` of fedleak, but `{missing}` is not installed: "
        f"pip install 'fedleak[{extra}]'."
    )
