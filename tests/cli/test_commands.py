"""The commands ``sweep``, ``import`` and ``report``, and the options of defences."""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fedleak import experiment
from fedleak.cli import main as cli
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
        ("--defenses+ prunning", ["prunning", "Did you mean `pruning`"]),
        ("--defenses+ pruning --defenses.ratoi 1", ["ratoi", "Did you mean `ratio`"]),
        ("--defenses+ pruning --defenses.ratio 1", ["`ratio` of pruning", "below 1"]),
        ("--defenses+ soteria --federation.protocol fedavg", ["soteria", "fedavg"]),
        ("--attacks+ iga --attacks+ iga", ["different names", "iga twice"]),
    ],
)
def test_options_that_do_not_fit_are_refused(extra, words, folder, capsys):
    said = refused(capsys, [*BASE.split(), *extra.split()])
    for word in words:
        assert word in said


def test_medical_mnist_says_where_to_get_it(folder, capsys):
    said = refused(capsys, ["run", "--data", "medical_mnist", "--model", "smlp"])
    assert "Medical-MNIST-Classification" in said


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
    said = refused(capsys, ["sweep", "study.yaml", "--ray-address", "localhost:6379"])
    assert "`--ray-address` together with `--engine ray`" in said


def done(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0


def test_report_writes_one_page(folder, capsys, monkeypatch):
    monkeypatch.setattr("fedleak.federation.engine.simulation.run_on_ray", run_in_process)
    config = tiny_config(tiny_data(folder), folder / "run", attacks=(attack_plugin("iga"),))
    experiment.run(config)
    done(["report", "run"])
    assert "run/report.html" in capsys.readouterr().out
    page = (folder / "run" / "report.html").read_text()
    assert "data:image/png;base64" in page
    assert "nowhere" in refused(capsys, ["report", "nowhere"])


@pytest.mark.slow
def test_a_small_study_from_one_end_to_the_other(folder, capsys):
    data = {"class_path": "npz", "init_args": {"path": str(tiny_data(folder))}}
    study = {
        "base": {
            "data": data,
            "model": {"class_path": "smlp", "init_args": {"width": 8}},
            "federation": {"clients": 2},
            "attacks": [{"class_path": "iga", "init_args": {"iterations": 5}}],
        },
        "grid": {
            "defense": [
                {"name": "none", "set": {}},
                {"name": "noise", "set": {"defenses": ["noise"]}},
            ]
        },
    }
    Path("study.yaml").write_text(yaml.safe_dump(study))
    done(["sweep", "study.yaml", "--output", "out"])
    assert "results.md" in capsys.readouterr().out
    with (folder / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["defense"] for row in rows] == ["none"] * 2 + ["noise"] * 2
    assert (folder / "out" / "picture.png").is_file()
    done(["sweep", "study.yaml", "--output", "out", "--resume"])
    with (folder / "out" / "results.csv").open() as file:
        assert list(csv.DictReader(file)) == rows


IMPORT = "import g.pt --model user_net:Net --kind gradient --input_shape 1,8,8 --classes 4"
USER_NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.a, self.b = torch.nn.Linear(64, width), torch.nn.Linear(width, 4)

    def forward(self, x):
        return self.b(torch.sigmoid(self.a(x.flatten(1))))
"""


@pytest.fixture
def gradient_file(folder, monkeypatch):
    """A user's module, the weights that were sent and the gradient of one image; the image."""
    (folder / "user_net.py").write_text(USER_NET)
    made: dict[str, Any] = {}
    exec(USER_NET, made)
    torch.manual_seed(0)
    net, image = made["Net"](48), torch.rand(1, 1, 8, 8)
    loss = torch.nn.functional.cross_entropy(net(image), torch.tensor([2]))
    gradient = torch.autograd.grad(loss, list(net.parameters()))
    torch.save(dict(zip(dict(net.named_parameters()), gradient, strict=True)), "g.pt")
    torch.save(net.state_dict(), "sent.pt")
    yield image
    sys.modules.pop("user_net", None)


def test_an_imported_gradient_is_attacked(gradient_file, capsys):
    done([*IMPORT.split(), "--model.width", "48", "--sent", "sent.pt", "--output", "theirs"])
    assert "fedleak attack theirs --attack NAME --trust" in " ".join(
        capsys.readouterr().out.split()
    )
    said = refused(capsys, ["attack", "theirs", "--attack", "rgap"])
    assert "user_net.Net" in said
    assert "--trust" in said
    done(["attack", "theirs", "--attack", "rgap", "--trust"])
    with Image.open("theirs-rgap/figures/victims/wrapped-rgap-r0001-c0000-0.png") as picture:
        error = np.asarray(picture) / 255 - gradient_file[0, 0].numpy()
    assert abs(error).max() < 0.01
    done(["report", "theirs-rgap"])
    page = Path("theirs-rgap/report.html").read_text()
    assert "Reconstructions without a score: 1 by RGAP on wrapped" in page.replace("rgap", "RGAP")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("", ["--sent", "random weights"]),
        ("--sent sent.pt", ["a.weight", "(32, 64)", "(48, 64)"]),
        ("--sent sent.pt --model.widht 48", ["widht", "Net"]),
        ("--sent nowhere.pt", ["nowhere.pt"]),
        ("--sent sent.pt --input_shape 1x8", ["--input_shape", "3,32,32", "1x8"]),
        ("--sent sent.pt --mean grey", ["--mean", "grey"]),
        ("--sent sent.pt --learning_rat 1", ["learning_rat"]),
        ("--sent sent.pt --kind change", ["kind", "change"]),
        ("--sent sent.pt --model user_net:Nut", ["Nut", "Net"]),
    ],
)
def test_imports_that_do_not_fit_are_refused(change, words, gradient_file, capsys):
    said = refused(capsys, [*IMPORT.split(), *change.split(), "--output", "theirs"])
    for word in words:
        assert word in said
