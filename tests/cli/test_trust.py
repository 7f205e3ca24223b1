"""Somebody else's run folder is data: reading commands import nothing that it names."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedleak
from fedleak import experiment
from fedleak.build import without_download
from fedleak.errors import BadInput
from fedleak.registry import Plugin, Untrusted, build, is_known, known_classes_only, load_class
from fedleak.runs.folder import RunFolder
from tests.federation.runs import in_process, tiny_config, tiny_data

ROOT = Path(fedleak.__file__).parents[1]
# A module that leaves a mark when it is imported, with classes that leave one when they are made.
MODULE = """
from pathlib import Path
Path(__file__).with_name("imported").touch()

class Thing:
    kind = "images"
    def __init__(self, **settings):
        Path(__file__).with_name("called").touch()
    def configure_optimizers(self): ...
    def forward(self): ...
    def __call__(self, message, context, call_next): ...
"""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a plain perceptron, one update of it kept."""
    folder = tmp_path_factory.mktemp("theirs")
    with in_process():
        experiment.run(tiny_config(tiny_data(folder), folder / "run", victim_clients=[0]))
    return folder / "run"


@pytest.fixture
def hostile(run_folder: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """A copy of the run whose config.yaml was changed, with a module beside it."""

    def make(change: Callable[[dict[str, Any]], None]) -> Path:
        copy = tmp_path / "run"
        subprocess.run(["cp", "-r", str(run_folder), str(copy)], check=True)
        values = yaml.safe_load((copy / "config.yaml").read_text())
        change(values)
        (copy / "config.yaml").write_text(yaml.safe_dump(values))
        (copy / "theirs.py").write_text(MODULE)
        return copy

    return make


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``fedleak`` as a process of its own, given inside the folder."""
    return subprocess.run(
        [sys.executable, "-m", "fedleak.cli.main", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def _data(values: dict[str, Any]) -> None:
    values["data"] = {"class_path": "theirs.Thing", "init_args": {}}


def _model(values: dict[str, Any]) -> None:
    values["model"] = {"class_path": "theirs.Thing", "init_args": {}}


def _defense(values: dict[str, Any]) -> None:
    values["defenses"] = [{"class_path": "theirs.Thing", "init_args": {}}]


def _attack(values: dict[str, Any]) -> None:
    values["attacks"] = [{"class_path": "theirs.Thing", "init_args": {}}]


def _mod(values: dict[str, Any]) -> None:
    values["federation"] |= {"protocol": "fedavg", "mods": [{"class_path": "theirs.Thing"}]}


def _command(values: dict[str, Any]) -> None:
    mods = [{"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "called"]}}]
    values["federation"] |= {"protocol": "fedavg", "mods": mods}


def _strategy(values: dict[str, Any]) -> None:
    values["federation"]["strategy"] = "theirs.Thing"


CHANGES = [_data, _model, _defense, _attack, _mod, _command, _strategy]
NEEDED = [_data, _model]  # by an attack on the updates


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_reading_commands_run_nothing_of_a_folder(change: Any, hostile: Any) -> None:
    folder = hostile(change)
    report = command(folder, "report", ".")
    assert report.returncode == 0, report.stderr
    attack = command(
        folder, "attack", ".", "--attack", "iga", "--attack.iterations", "2", "--output", "../out"
    )
    assert attack.returncode == (2 if change in NEEDED else 0), attack.stderr
    if change in NEEDED:
        assert "`theirs.Thing`, which would be imported and run: give `--trust`" in attack.stderr
        assert attack.stderr.count("\n") == 1
        assert not (folder.parent / "out").exists()
    assert not (folder / "imported").exists()
    assert not (folder / "called").exists()


@pytest.mark.parametrize("change", CHANGES)
def test_reading_functions_run_nothing_of_a_folder(
    change: Any, hostile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same in this process, where the folder is on the path of imports."""
    from fedleak.config import RunConfig
    from fedleak.reporting import write_report

    folder = hostile(change)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)
    assert write_report(RunFolder(folder)).is_file()
    with known_classes_only():
        config = RunConfig.load(folder / "config.yaml")
    attacks = (Plugin("fedleak.attacks.iga.IGA", {"iterations": 2}),)
    values = vars(config) | {"attacks": attacks, "output": str(folder.parent / "out")}
    if change in NEEDED:
        with pytest.raises(Untrusted, match=r"`theirs.Thing`, which would be imported"):
            experiment.attack_run(folder, RunConfig(**values))
    else:
        assert experiment.attack_run(folder, RunConfig(**values))["status"] == "complete"
    assert "theirs" not in sys.modules
    assert not (folder / "imported").exists()
    assert not (folder / "called").exists()


def test_a_class_of_another_kind_is_imported_with_trust_and_not_called(
    hostile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hostile(_data)
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(BadInput, match=r"`data` to name a subclass of PrivateData, got `theirs.T"):
        build("data", Plugin("theirs.Thing", {}))
    sys.modules.pop("theirs")
    assert (folder / "imported").exists()
    assert not (folder / "called").exists()


def test_what_is_known() -> None:
    for path in ("fedleak.attacks.iga.IGA", "flwr.clientapp.mod.LocalDpMod"):
        assert is_known(path)
    for path in ("subprocess.Popen", "fedleakish.Attack", "flwr.clientapp.modding.Mod", "theirs.X"):
        assert not is_known(path)
    with known_classes_only(but=["pathlib.Path"]):
        assert load_class("pathlib.Path") is Path
        with pytest.raises(Untrusted, match=r"got `pathlib.PurePath`, which would be imported"):
            load_class("pathlib.PurePath")
        with known_classes_only(), pytest.raises(Untrusted):
            load_class("pathlib.Path")
        assert load_class("pathlib.Path") is Path
    assert load_class("pathlib.PurePath").__name__ == "PurePath"


# ----------------------------------------------------------------------- what else a folder may do


def test_a_stored_data_set_downloads_nothing() -> None:
    stored = Plugin("fedleak.data.cifar.CIFAR10", {"root": "anywhere", "download": True})
    assert without_download(stored).init_args == {"root": "anywhere", "download": False}
    photos = Plugin("fedleak.data.photos.Photos", {})
    assert without_download(photos) is photos


@pytest.mark.parametrize("inside", ["", "inside", "updates/inside"])
def test_the_output_is_no_folder_of_the_source(inside: str, run_folder: Path) -> None:
    from fedleak.config import RunConfig

    before = sorted(run_folder.rglob("*"))
    attacks = (Plugin("fedleak.attacks.iga.IGA", {"iterations": 2}),)
    config = RunConfig.load(run_folder / "config.yaml")
    values = vars(config) | {"attacks": attacks, "output": str(run_folder / inside)}
    with pytest.raises(BadInput, match="to be another folder than that of the updates"):
        experiment.attack_run(run_folder, RunConfig(**values))
    assert sorted(run_folder.rglob("*")) == before


@pytest.mark.parametrize(
    "path",
    [
        "fedleak.data.base.PrivateData",
        "fedleak.attacks.base.Attack",
        "fedleak.defenses.base.Defense",
    ],
)
def test_a_base_class_is_no_plugin(path: str) -> None:
    with pytest.raises(BadInput, match="which is a base class: see `fedleak list"):
        build(path.split(".")[1], Plugin(path, {}))


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.dat")
    for name in ("movielens.MovieLens", "steam.Steam"):
        data = build("data", Plugin(f"fedleak.data.{name}", {"path": str(tmp_path / "pipe.dat")}))
        with pytest.raises(BadInput, match=r"Expected a file at .*pipe.dat, found none"):
            data.setup()


def test_names_in_results_hold_no_control_characters() -> None:
    from fedleak.config import RunConfig

    config = RunConfig(
        Plugin("fedleak.data.npz.Npz", {"path": "/somewhere/a\nb.npz"}),
        Plugin("fedleak.models.mlp.SMLP", {}),
        defenses=(Plugin("my.Defence", {"text": "line\nbreak\x1b[2J"}),),
    )
    assert config.data_name == "a?b"
    assert config.defense_name == "defence(text=line?break?[2J)"
