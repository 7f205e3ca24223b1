"""Bad input on the command line: one sentence, exit code 2, nothing written."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from fedleak import cli, experiment
from tests.federation.fakes import run_in_process
from tests.federation.runs import attack_plugin, tiny_config, tiny_data

BASE = "run --data photos --model smlp --output out"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in; 80 columns as in a narrow terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def refused(capsys, arguments: list[str]) -> str:
    """The sentence on standard error; checks that there is one line of it and exit code 2."""
    before = {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")}
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert said.startswith("fedleak: ")
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    assert {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")} == before
    return said


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("--sed 1", ["sed", "Did you mean `seed`"]),
        ("--federation.clents 3", ["clents", "federation", "Did you mean `clients`"]),
        ("--attacks+ igaa", ["igaa", "iga, ", "nra", "Did you mean `iga`"]),
        ("--data fotos", ["fotos", "cifar10", "Did you mean `photos`"]),
        ("--model smpl", ["smpl", "lenet", "Did you mean `smlp`"]),
        ("--model.widht 3", ["widht", "Did you mean", "width"]),
        ("--model.precode.bottleneck_siz 3", ["bottleneck_siz", "bottleneck_size"]),
        ("--attacks+ iga --attacks.iteratons 3", ["iteratons", "Did you mean", "iterations"]),
        ("--attacks+ iga --attacks.iterations -5", ["iterations", "at least 1", "-5"]),
        ("--federation.clients 0", ["federation.clients", "at least 1", "0"]),
        ("--federation.rounds 0", ["federation.rounds", "at least 1"]),
        ("--federation.clients many", ["federation.clients", "whole number", "many"]),
        ("--federation.protocol fedsg", ["federation.protocol", "fedsgd", "fedavg", "fedsg"]),
        ("--federation.strategy FedAvgg", ["FedAvgg", "Did you mean `FedAvg`"]),
        ("--model.precode.bottleneck_size 0", ["precode.bottleneck_size", "at least 1"]),
        ("--model.precode.beta -1", ["precode.beta", "at least 0"]),
        ("--federation.clients 5000", ["5000", "4800"]),
        ("--federation.batch_size 4000 --federation.clients 2", ["batch_size", "4000", "2400"]),
        ("--victims.clients [9]", ["victims.clients", "at most 7", "9"]),
        ("--victims.rounds [2]", ["victims.rounds", "at most 1"]),
        ("--baseline true", ["baseline", "model.precode"]),
        ("--attacks+ nra", ["nra", "draws none", "model.precode"]),
        ("--attacks+ iga --attacks+ iga", ["different names", "iga twice"]),
        ("--defenses+ pruning --defenses.ratio 1", ["`ratio` of pruning", "below 1"]),
        ("--defenses+ soteria --federation.protocol fedavg", ["soteria", "fedavg"]),
        ("--metrics.success_threshold 2", ["success_threshold", "-1 to 1"]),
        ("--device gpu9", ["device", "gpu9"]),
        ("--config nowhere.yaml", ["nowhere.yaml"]),
        ("--seed -1", ["seed", "at least 0"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_run_refuses(extra, words, folder, capsys):
    said = refused(capsys, [*BASE.split(), *extra.split()])
    for word in words:
        assert word in said


def test_misspelt_keys_in_a_file(folder, capsys):
    for content, words in (
        ({"sed": 1}, ["sed", "Did you mean `seed`"]),
        ({"federation": {"clents": 1}}, ["clents", "clients"]),
        ({"attacks": [{"class_path": "iga", "init_args": {"iteratons": 1}}]}, ["iteratons"]),
        ({"attacks": ["igaa"]}, ["igaa", "Did you mean `iga`"]),
    ):
        Path("config.yaml").write_text(yaml.safe_dump(content))
        said = refused(capsys, [*BASE.split(), "--config", "config.yaml"])
        for word in words:
            assert word in said
    Path("config.yaml").write_text("a: [b\n")
    assert "config.yaml" in refused(capsys, [*BASE.split(), "--config", "config.yaml"])


def test_missing_data_says_how_to_get_it(folder, capsys):
    said = refused(capsys, ["run", "--data", "cifar10", "--model", "smlp"])
    assert "--data.download true" in said
    arguments = ["run", "--data", "npz", "--data.path", "nowhere.npz", "--model", "smlp"]
    assert "nowhere.npz" in refused(capsys, arguments)
    arguments = ["run", "--data", "medical_mnist", "--model", "smlp"]
    assert "Medical-MNIST-Classification" in refused(capsys, arguments)


def test_a_model_that_does_not_fit_the_images_names_both_shapes(folder, capsys):
    Path("narrow_model.py").write_text(
        "import torch\n"
        "from fedleak.models import SMLP\n"
        "class Narrow(SMLP):\n"
        "    def __init__(self, *, num_classes: int):\n"
        "        super().__init__(input_shape=(1, 28, 28), num_classes=num_classes, width=4)\n"
    )
    said = refused(capsys, ["run", "--data", "photos", "--model", "narrow_model.Narrow"])
    assert "(3, 32, 32)" in said
    assert "(1, 28, 28)" in said


@pytest.fixture
def saved(folder, monkeypatch):
    """A small run in ``run``, made without Ray."""
    monkeypatch.setattr("fedleak.federation.simulation.run_on_ray", run_in_process)
    config = tiny_config(
        tiny_data(folder), folder / "run", batch_size=1, clients=2, attacks=(attack_plugin("iga"),)
    )
    experiment.run(config)
    return folder / "run"


def test_an_output_that_exists(saved, capsys):
    arguments = ["run", "--config", "run/config.yaml"]
    said = refused(capsys, arguments)
    assert "--resume" in said
    assert "--overwrite" in said
    said = refused(capsys, [*arguments, "--seed", "5", "--resume"])
    assert "another one" in said
    assert "both" in refused(capsys, [*arguments, "--resume", "--overwrite"])
    shutil.copytree(saved / "truth", "something")
    said = refused(capsys, [*arguments, "--output", "something", "--overwrite"])
    assert "something else" in said


def test_attack_never_overwrites_its_source(saved, capsys):
    said = refused(capsys, ["attack", "run", "--attack", "iga", "--output", "run", "--overwrite"])
    assert "run" in said


def test_attack_refuses_what_is_no_run(folder, capsys):
    assert "nowhere" in refused(capsys, ["attack", "nowhere", "--attack", "iga"])
    said = refused(capsys, ["report", "nowhere"])
    assert "nowhere" in said


@pytest.mark.parametrize("damage", ["truncated", "nan", "other names", "other shapes", "pickle"])
def test_attack_refuses_a_damaged_update(damage, saved, capsys):
    path = saved / "updates" / "r0001-c0001.safetensors"
    tensors = load_file(path)
    header = {
        "format": "fedleak-update-1", "round": "1", "client": "1", "protocol": "fedsgd",
        "num_examples": "1", "model": "smlp",
    }  # fmt: skip
    path.unlink()  # other folders may share the file's content
    if damage == "truncated":
        save_file(tensors, path, header)
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "nan":
        tensors["classifier.bias"][0] = float("nan")
        save_file(tensors, path, header)
    elif damage == "other names":
        save_file({f"net.{name}": value for name, value in tensors.items()}, path, header)
    elif damage == "other shapes":
        tensors["classifier.bias"] = torch.zeros(99)
        save_file(tensors, path, header)
    else:
        torch.save(tensors, path)
    words = {
        "truncated": "copy it again", "nan": "NaN", "other names": "SMLP",
        "other shapes": "(99,)", "pickle": "cannot be read",
    }[damage]  # fmt: skip
    for source in ("run", str(path)):
        said = refused(capsys, ["attack", source, "--attack", "iga", "--output", "again"])
        assert words in said


def test_sweep_refuses_a_study_that_cannot_work(folder, capsys):
    assert "nowhere.yaml" in refused(capsys, ["sweep", "nowhere.yaml"])
    base = {"data": "photos", "model": "smlp", "attacks": ["iga"]}
    for content, words in (
        ({"base": base, "gird": {}}, ["gird", "grid"]),
        ({"base": base, "grid": {"model": ["smpl"]}}, ["smpl", "Did you mean `smlp`"]),
        ({"base": base, "grid": {"k": [{"federation.clents": 1}]}}, ["clents"]),
    ):
        Path("study.yaml").write_text(yaml.safe_dump(content))
        said = refused(capsys, ["sweep", "study.yaml", "--output", "out"])
        for word in words:
            assert word in said


def test_unknown_commands_and_none_at_all(folder, capsys):
    assert "atack" in refused(capsys, ["atack", "run"])
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2
    assert "fedleak run --data photos" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "attack", "sweep", "report", "list"])
def test_help_has_an_example_and_fits_80_columns(command, folder, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"fedleak {command}" in text.split("Example:")[1]
    assert max(len(line) for line in text.splitlines()) <= 80


def test_lists_show_paper_and_needs_in_80_columns(folder, capsys):
    with pytest.raises(SystemExit):
        cli.main(["list", "attacks"])
    text = capsys.readouterr().out
    for word in ("iga", "nra", "Geiping", "2003.14053", "needs", "draws"):
        assert word in text
    assert max(len(line) for line in text.splitlines()) <= 80
