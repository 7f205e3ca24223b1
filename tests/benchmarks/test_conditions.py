"""What is recorded of machine, commit and versions."""

import os
import subprocess
from datetime import date

import pytest
import torch

from benchmarks.conditions import commit, conditions


def test_conditions_name_machine_commit_and_versions():
    found = conditions()
    assert found["machine"]["cores"] == os.cpu_count()
    assert found["machine"]["memory_gib"] * 2**30 == pytest.approx(
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), rel=0.05
    )
    assert found["machine"]["processor"]
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    date.fromisoformat(found["date"])


def test_the_commit_is_that_of_the_tree_and_says_when_it_is_modified(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.conditions.ROOT", tmp_path)
    assert commit() == "unknown"
    (tmp_path / "fedleak").mkdir()
    code = tmp_path / "fedleak" / "code.py"
    code.write_text("1")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    clean = commit()
    assert len(clean) == 10
    code.write_text("2")
    assert commit() == f"{clean} (modified)"
