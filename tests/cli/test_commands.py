"""The commands ``sweep`` and ``report``, and the options of defences."""

import csv
from pathlib import Path

import pytest
import yaml

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
