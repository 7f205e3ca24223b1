"""A run's folder: made, resumed, overwritten, refused."""

from pathlib import Path

import pytest
import torch

from fedleak.config import Federation, RunConfig
from fedleak.errors import BadInput
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import (
    append_rows,
)
from fedleak.updates.truth import GroundTruth
from tests.runs.rows import config, row


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.csv"


def test_a_new_folder(tmp_path: Path) -> None:
    settings = config(tmp_path, baseline=True)
    folder = RunFolder(tmp_path / "run")
    folder.open(settings, resume=False, overwrite=False)
    found = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*")}
    assert found == {
        "config.yaml", "updates", "updates/baseline", "truth", "truth/baseline", "figures",
        "figures/victims", "tensorboard",
    }  # fmt: skip
    assert RunConfig.load(folder.config) == settings


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    folder = RunFolder(tmp_path / "run")
    folder.open(config(tmp_path), resume=False, overwrite=False)
    assert RunConfig.load(folder.config) == config(tmp_path)
    assert folder.updates().is_dir()


def test_a_run_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(config(tmp_path), resume=False, overwrite=False)
    with pytest.raises(BadInput, match=r"no run at .*, found one: .*`--resume`.*`--overwrite`"):
        folder.open(config(tmp_path), resume=False, overwrite=False)


def test_resume_keeps_and_overwrite_deletes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(config(tmp_path), resume=False, overwrite=False)
    append_rows(folder.results, [row()])
    folder.open(config(tmp_path), resume=True, overwrite=False)
    assert folder.results.exists()
    folder.open(config(tmp_path), resume=False, overwrite=True)
    assert not folder.results.exists()
    assert folder.config.exists()


def test_resume_of_what_was_not_begun_begins_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(config(tmp_path), resume=True, overwrite=False)
    assert folder.config.exists()


def test_resume_with_another_configuration(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(config(tmp_path), resume=False, overwrite=False)
    other = config(tmp_path, seed=1)
    with pytest.raises(BadInput, match=r"configuration of .*config.yaml to resume it, got another"):
        folder.open(other, resume=True, overwrite=False)
    folder.open(other, resume=False, overwrite=True)
    assert RunConfig.load(folder.config).seed == 1


@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)])
def test_what_is_no_run_is_never_touched(tmp_path: Path, flags: tuple[bool, bool]) -> None:
    resume, overwrite = flags
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match=r"folder of a run or nothing at .*, found something else"):
        RunFolder(tmp_path / "run").open(config(tmp_path), resume=resume, overwrite=overwrite)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(BadInput, match="folder of a run or nothing"):
        RunFolder(file).open(config(tmp_path), resume=resume, overwrite=overwrite)
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


def test_resume_or_overwrite_not_both(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="one of `--resume` and `--overwrite`, got both"):
        RunFolder(tmp_path / "run").open(config(tmp_path), resume=True, overwrite=True)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    found.open(config(tmp_path), resume=False, overwrite=False)
    return found


def test_truth_of_an_update(folder: RunFolder) -> None:
    assert folder.read_truth("", 1, 0) is None
    truth = GroundTruth(torch.ones(1, 1, 2, 2), torch.tensor([3]))
    truth.save(folder.truth() / "r0001-c0000.safetensors")
    assert folder.read_truth("", 1, 0).labels.tolist() == [3]
    assert folder.read_truth("baseline", 1, 0) is None


def test_resume_looks_at_the_federation_too(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(config(tmp_path), resume=False, overwrite=False)
    with pytest.raises(BadInput, match="to resume it"):
        folder.open(
            config(tmp_path, federation=Federation(clients=3)), resume=True, overwrite=False
        )
