"""An audit's folder: what may be opened, and where its files are."""

from pathlib import Path

import pytest

from fedleak.audit.folder import AuditFolder
from fedleak.errors import BadInput
from tests.audit.made_audit import a_config


def opened(path: Path, *, resume: bool = False, overwrite: bool = False, **changes: object) -> None:
    AuditFolder(path).open(a_config(**changes), resume=resume, overwrite=overwrite)


def test_an_audit_is_neither_replaced_nor_continued_unasked(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    opened(path)
    (path / "summary.json").write_text("{}")
    with pytest.raises(BadInput, match="found one: continue it with `--resume`"):
        opened(path)
    with pytest.raises(BadInput, match="Expected one of `--resume` and `--overwrite`, got both"):
        opened(path, resume=True, overwrite=True)
    with pytest.raises(BadInput, match="`clients` is `4` there and `9` here"):
        opened(path, resume=True, clients=9)
    opened(path, resume=True)
    assert (path / "summary.json").is_file()
    opened(path, overwrite=True, clients=9)
    assert not (path / "summary.json").exists()
    with pytest.raises(BadInput, match="`clients` is `9` there and `4` here"):
        opened(path, resume=True)


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_other_things_are_left_alone(flag: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(BadInput, match="Expected the folder of an audit or nothing at"):
        opened(tmp_path, **{flag: True})  # type: ignore[arg-type]
    (tmp_path / "config.yaml").write_text("model: smlp\n")  # a run of fedleak
    with pytest.raises(BadInput, match="Expected the configuration of an audit"):
        opened(tmp_path, **{flag: True})  # type: ignore[arg-type]
    assert (tmp_path / "thesis.tex").read_text() == "all of it"
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"Expected the folder of an audit or nothing at"):
        opened(tmp_path / "file")


def test_an_incomplete_run_of_the_app_is_removed(tmp_path: Path) -> None:
    folder = AuditFolder(tmp_path / "audit")
    opened(folder.path)
    assert not folder.remove_app_run()
    for name in ("updates", "truth", "facts", "nodes"):
        (folder.path / name).mkdir()
    (folder.path / "replies.jsonl").write_text("{}\n")
    assert folder.remove_app_run()
    assert {path.name for path in folder.path.iterdir()} == {"config.yaml", "figures"}


def test_the_files_of_a_sample(tmp_path: Path) -> None:
    folder = AuditFolder(tmp_path)
    assert folder.sample("r0001-c0002", 3, "found").name == "r0001-c0002-3-found.png"
    assert folder.sample("canary", 0, "", ".csv").name == "canary-0.csv"
