"""The command line: what it prints, what it refuses, how it ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from fedleak.cli import main as cli
from fedleak.config import RunConfig
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import read_rows
from tests.federation.runs import Finished, finished_run, in_process, tiny_data, without_seconds

ROOT = Path(__file__).parents[2]
COMMANDS = ("run", "attack", "list")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(tmp_path_factory)


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands are given in a folder of their own; clients run in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with in_process():
        yield


class Said:
    """How a command ended and what it said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Command = Callable[..., Said]


@pytest.fixture
def fedleak(capsys: pytest.CaptureFixture[str]) -> Command:
    def command(*arguments: object) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        return Said(int(caught.value.code or 0), *capsys.readouterr())

    return command


def settings(path: Path, **changes: Any) -> dict[str, Any]:
    """A small run as a configuration file has it."""
    return {
        "output": "out",
        "data": {"class_path": "npz", "init_args": {"path": str(path)}},
        "model": {"class_path": "smlp", "init_args": {"width": 12}},
        "federation": {"clients": 4, "batch_size": 2},
        "attacks": [{"class_path": "iga", "init_args": {"iterations": 5}}],
    } | changes


def write_yaml(values: Any, name: str = "config.yaml") -> Path:
    path = Path(name).absolute()
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def refuses(said: Said, sentence: str) -> None:
    """One sentence on stderr, exit code 2, nothing written."""
    assert said.code == 2
    assert said.out == ""
    assert said.err.endswith("\n")
    (line,) = said.err.splitlines()
    assert line.startswith("fedleak: ")
    assert re.search(sentence, line), line
    assert "Traceback" not in line
    assert not Path("out").exists()


# -------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_parses(command: str, fedleak: Command) -> None:
    said = fedleak(command, "--help")
    assert said.code == 0
    assert said.err == ""
    assert max(map(len, said.out.splitlines())) <= 80
    assert said.out.startswith(f"usage: fedleak {command}")
    example = re.search(r"Example:\n((?:  .*\n)+)", said.out)
    assert example is not None
    words = example[1].replace("\\\n", " ").split()
    assert words[:2] == ["fedleak", command]
    from fedleak.cli.arguments import parse

    assert parse(words[1:]).subcommand == command


def test_help_of_all_commands(fedleak: Command) -> None:
    said = fedleak("--help")
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= 80
    for command in COMMANDS:
        assert f"    {command} " in said.out


def test_without_a_command_help_is_shown(fedleak: Command) -> None:
    said = fedleak()
    assert said.code == 2
    assert said.out == fedleak("--help").out


def test_help_names_the_settings_and_what_they_mean(fedleak: Command) -> None:
    text = " ".join(fedleak("run", "--help").out.split())
    for words in (
        "--federation.rounds ROUNDS number of rounds, at least 1. (type: int, default: 1)",
        "--victims.labels {known,recovered,bias_counts,idlg,row_minima}", "--metrics.lpips {true,",
        "--model NAME The model: dmlp,", "--resume", "photos",
    ):  # fmt: skip
        assert words in text


@pytest.mark.parametrize("option", ["--data.help", "--attacks.help=iga", "--model.help"])
def test_help_of_a_plugin(option: str, fedleak: Command) -> None:
    arguments = [option] if "=" in option else [option, {"--data.help": "npz"}.get(option, "smlp")]
    said = fedleak("run", *arguments)
    assert said.code == 0
    assert "iterations" in said.out or "path" in said.out or "width" in said.out


@pytest.mark.parametrize("kind", ["attacks", "data", "models", "all"])
def test_list(kind: str, fedleak: Command) -> None:
    said = fedleak("list", kind)
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= 80
    expected = {
        "attacks": ["iga", "Geiping et al.", "https://arxiv.org/abs/2003.14053", "needs", "nra"],
        "data": ["photos", "cifar10", "npz"],
        "models": ["smlp", "lenet"],
    }
    expected["all"] = [word for words in expected.values() for word in words]
    assert all(word in said.out for word in expected[kind])


LOADED = """
import sys
from fedleak.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("LOADED", *({"torch", "pytorch_lightning", "flwr"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "code", "loaded"),
    [
        ("--help", 0, ""),
        ("list", 0, ""),
        ("rnu", 2, ""),
        ("report --ovre", 2, ""),
        ("run --data photos --model smlp --sede 3", 2, "torch"),
        ("run --data photos --model smlp --model.widht 3", 2, "torch"),
        ("run --data photos --model smlp --attacks+ nra --attacks.iteratons 3", 2, "torch"),
    ],
)
def test_what_needs_no_plugin_imports_none(arguments: str, code: int, loaded: str) -> None:
    """An answer that comes at once: Lightning and Flower take seconds to import."""
    found = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments.split()], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert found.returncode == code, found.stderr
    assert found.stdout.splitlines()[-1].split() == ["LOADED", *loaded.split()]


# --------------------------------------------------------------------------------------- good runs


def test_a_run_from_a_file_with_overrides(fedleak: Command, tmp_path: Path) -> None:
    config = write_yaml(settings(tiny_data(tmp_path), seed=3))
    said = fedleak(
        "run", "--config", config, "--seed", 5, "--federation.clients", 2,
        "--model.width", 7, "--model.precode.bottleneck_size", 3, "--attacks.iterations", 4,
        "--attacks+", "nra", "--attacks.iterations=6", "--victims.clients", "[1]",
        "--federation.strategy", "FedAdam", "--federation.strategy_options.eta", 0.5,
    )  # fmt: skip
    assert said.code == 0, said.err
    assert said.err == ""
    assert max(map(len, said.out.partition("Look at")[0].splitlines())) <= 80
    resolved = RunConfig.load(tmp_path / "out" / "config.yaml")
    assert (resolved.seed, resolved.federation.clients) == (5, 2)
    assert resolved.federation.batch_size == 2  # from the file
    assert resolved.federation.strategy_options == {"eta": 0.5}
    assert resolved.model.init_args["width"] == 7
    precode = {"bottleneck_size": 3, "beta": 0.001, "kind": "linear"}
    assert resolved.model.init_args["precode"] == precode
    assert [plugin.init_args["iterations"] for plugin in resolved.attacks] == [4, 6]
    rows = read_rows(tmp_path / "out" / "results.csv")
    assert {(row["attack"], row["client"], row["model"]) for row in rows} == {
        ("iga", 1, "smlp+precode"), ("nra", 1, "smlp+precode"),
    }  # fmt: skip
    for words in ("Federation of 2 clients", "What the updates leak", "out/summary.json"):
        assert words in said.out


def test_a_run_from_options_alone(fedleak: Command, tmp_path: Path) -> None:
    said = fedleak(
        "run", "--data", "npz", "--data.path", tiny_data(tmp_path), "--model", "smlp",
        "--model.width=9", "--federation.clients=4", "--attacks", "iga",
        "--attacks.iterations", 3, "--output", "out",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert len(read_rows(tmp_path / "out" / "results.csv")) == 4


def test_the_resolved_configuration_reproduces_the_run(fedleak: Command, tmp_path: Path) -> None:
    config = write_yaml(settings(tiny_data(tmp_path)))
    assert fedleak("run", "--config", config).code == 0
    resolved = tmp_path / "out" / "config.yaml"
    said = fedleak("run", "--config", resolved, "--output", "again")
    assert said.code == 0, said.err
    assert "Note:" not in said.out
    rows = [without_seconds(read_rows(tmp_path / n / "results.csv")) for n in ("out", "again")]
    assert rows[0] == rows[1]
    hashes = [RunConfig.load(tmp_path / n / "config.yaml").hash for n in ("out", "again")]
    assert hashes[0] == hashes[1]


def test_other_versions_are_told(fedleak: Command, tmp_path: Path) -> None:
    values = settings(tiny_data(tmp_path), versions={"torch": "1.0", "fedleak": "0.0"})
    said = fedleak("run", "--config", write_yaml(values))
    assert said.code == 0, said.err
    assert "Note: the configuration was made with torch 1.0, installed is 2." in said.out


OWN = """
import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.nn import functional

class Mine(LightningModule):
    def __init__(self, *, classes: int = 4):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, classes))

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""


def test_a_model_of_ones_own_in_the_working_folder(
    fedleak: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own_module.py").write_text(OWN.replace("SIDE", "8"))
    monkeypatch.delitem(sys.modules, "own_module", raising=False)
    values = settings(tiny_data(tmp_path), model="own_module.Mine")
    said = fedleak("run", "--config", write_yaml(values))
    assert said.code == 0, said.err
    assert json.loads(Path("out/summary.json").read_text())["attacks"][0]["model"] == "mine"


def test_a_model_of_ones_own_that_does_not_fit_the_images(
    fedleak: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own_misfit.py").write_text(OWN.replace("SIDE", "9"))
    monkeypatch.delitem(sys.modules, "own_misfit", raising=False)
    values = settings(tiny_data(tmp_path), model="own_misfit.Mine")
    refuses(
        fedleak("run", "--config", write_yaml(values)),
        r"images of shape \(1, 8, 8\) \(tiny\), but mine fails on them: .*\(2x64 and 81x4\)",
    )


def test_a_model_made_for_other_images(fedleak: Command, tmp_path: Path) -> None:
    values = settings(tiny_data(tmp_path))
    values["model"]["init_args"]["input_shape"] = [3, 32, 32]
    refuses(fedleak("run", "--config", write_yaml(values)), "Unknown setting of smlp `input_shape`")


# ------------------------------------------------------------------------- bad input to fedleak run

OPTIONS: list[tuple[str, str]] = [
    # misspelt settings and names: the nearest match and the list
    ("--federation.clinets 3", r"Unknown setting of federation `clinets`: expected one of alpha, "
     r".*, clients, .* Did you mean `clients`\?$"),
    ("--fedaration.clients 3", r"Unknown setting `fedaration.clients`: .*`federation`\?$"),
    ("--sede 3", r"Unknown setting `sede`: expected one of attacks, .*, seed, .*`seed`\?$"),
    ("--see 3", r"Unknown setting `see`: .* Did you mean `seed`\?$"),
    ("--attack iga", r"Unknown setting `attack`: .* Did you mean `attacks`\?$"),
    ("--model.widht 3", r"Unknown setting of smlp `widht`: expected one of learning_rate, "
     r"optimizer, precode, width\. Did you mean `width`\?$"),
    ("--model.precode.betta 1", r"Unknown setting of precode `betta`: expected one of beta, "
     r"bottleneck_size, kind\. Did you mean `beta`\?$"),
    ("--attacks.iteratons 3", r"Unknown setting of iga `iteratons`: .*, iterations, .* Did you "
     r"mean `iterations`\?$"),
    ("--attacks+ igga", r"Unknown attack `igga`: expected one of .*iga.*nra.* mean `iga`\?$"),
    ("--attacks [igga]", r"Unknown attack `igga`"),
    ("--attacks [{class_path:iga}]", r"Unknown setting of attacks `class_path:iga`"),
    ("--model smpl", r"Unknown model `smpl`: expected one of .*smlp.* Did you mean `smlp`\?$"),
    ("--data phtos", r"Unknown data set `phtos`: .* Did you mean `photos`\?$"),
    ("--federation.strategy FedAvgg", r"Unknown strategy `FedAvgg`: .* Did you mean `FedAvg`\?$"),
    ("--federation.strategy_options.et 1", r"Unknown option of strategy FedAvg `et`: expected one"),
    # dotted paths
    ("--model no.such.Model", r"Expected an importable class at `no.such.Model`, but importing "
     r"`no.such` fails: No module named 'no'\.$"),
    ("--model fedleak.models.LeNett", r"Unknown class of `fedleak.models` `LeNett`: .*`LeNet`\?$"),
    ("--model fedleak.data.Photos", r"Expected `model` to name a subclass of LightningModule, got "
     r"`fedleak.data.Photos`: see `fedleak list models`\.$"),
    ("--attacks [fedleak.data.Photos]", r"Expected `attacks` to name a subclass of Attack"),
    # values out of range
    ("--attacks.iterations -5", r"Expected `iterations` to be at least 1, got -5\.$"),
    ("--attacks.learning_rate 0", r"Expected `learning_rate` to be positive, got 0"),
    ("--federation.clients 0", r"Expected `federation.clients` to be at least 1, got 0\.$"),
    ("--federation.clients 65", r"at most the number of samples, 64, got 65"),
    ("--federation.batch_size 17", r"`federation.batch_size` 17, but client \d has 16 of the 64"),
    ("--federation.alpha 0", r"Expected `federation.alpha` to be positive, got 0"),
    ("--federation.client_timeout -1", r"`federation.client_timeout` to be positive, got -1"),
    ("--federation.gpus_per_client 99", r"at most the number of GPUs here"),
    ("--model.precode.bottleneck_size 0", r"`precode.bottleneck_size` to be at least 1, got 0\.$"),
    ("--model.precode.beta -1", r"Expected `precode.beta` to be at least 0, got -1"),
    ("--model.width 0", r"Expected `model.width` to be at least 1, got 0\.$"),
    ("--model.learning_rate 0", r"Expected `model.learning_rate` to be positive, got 0"),
    ("--victims.clients [9]", r"`victims.clients` to be at most 3, as the federation has 4 "),
    ("--victims.rounds [2]", r"Expected `victims.rounds` to be at most 1, as the federation has 1"),
    ("--victims.rounds []", r"`victims.rounds` to be one or more numbers from 1, got \[\]"),
    ("--seed -1", r"Expected `seed` to be at least 0, got -1\.$"),
    ("--metrics.success_threshold 3", r"to be from -1 to 1, got 3"),
    ("--device abacus", r"Expected `device` to be one that torch can use here, .* got `abacus`"),
    ("--baseline true", r"Expected `model.precode` to be set where `baseline` is true"),
    # wrong types and choices
    ("--federation.clients two", r"federation.clients` to be a whole number or null, got `two`\.$"),
    ("--federation.clients 2.5", r"federation.clients` to be a whole number or null, got `2.5`\.$"),
    ("--federation.alpha x", r"Expected `federation.alpha` to be a number, got `x`\.$"),
    ("--baseline maybe", r"Expected `baseline` to be true or false, got `maybe`\.$"),
    ("--seed x", r"Expected `seed` to be a whole number, got `x`\.$"),
    ("--victims.clients 1", r"Expected `victims.clients` to be a list of whole numbers "
     r"\(such as \[0, 2\]\) or null, got `1`\.$"),
    ("--victims.clients [a]", r"Expected `victims.clients` to be a whole number, got `a`\.$"),
    ("--attacks.iterations x", r"Expected `attacks.iterations` to be a whole number, got `x`\.$"),
    ("--model.width x", r"Expected `model.width` to be a whole number, got `x`\.$"),
    ("--model.precode.beta x", r"Expected `model.precode.beta` to be a number, got `x`\.$"),
    ("--federation.protocol fedsdg", r"Unknown value of `federation.protocol` `fedsdg`: expected "
     r"one of fedavg, fedsgd\. Did you mean `fedsgd`\?$"),
    ("--victims.labels knwn", r"Unknown value of `victims.labels` `knwn`: .*`known`\?$"),
    ("--victims.labels row_minma", r"`victims.labels` `row_minma`: .* mean `row_minima`\?$"),
    ("--victims.labels idlg --federation.batch_size 2", r"Expected `victims.labels` to fit the "
     r"batches, but idlg recovers the label of one sample, not of 2: try bias_counts"),
    ("--metrics.lpips maybe", r"Expected `metrics.lpips` to be true or false, got `maybe`\.$"),
    ("--model.optimizer sdg", r"Unknown value of `model.optimizer` `sdg`: .* adam, sgd"),
    ("--attacks.cost cosin", r"Unknown value of `attacks.cost` `cosin`: .* mean `cosine`\?$"),
    ("--federation.strategy_options 5", r"`federation.strategy_options` to be a mapping"),
    # how options are given
    ("--seed", r"Expected a value after `--seed`, got nothing\.$"),
    ("--model --seed 3", r"Expected a value after `--model`, got nothing\.$"),
    ("--resume=3", r"Expected no value after `--resume`, got `3`\.$"),
    ("--output=", r"Expected a folder as `output`, got an empty text: write `\.` for this one\.$"),
    ("stray", r"Expected options, such as `--seed 1`, got `stray`\.$"),
    ("--resume --overwrite", r"Expected one of `--resume` and `--overwrite`, got both\.$"),
    ("--attacks [iga", r"Expected YAML in the value of `--attacks`, got a mistake in line 1: "),
    ("--federation nosuch.yaml", r"Expected settings of `federation` or a YAML file, got `nosuch"),
    # data
    ("--data.path /no/where.npz", r"found no file `/no/where.npz`; set `--data.path` to a file"),
    ("--data cifar10 --data.root /no/where", r"`--data.download true` to download it"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "sentence"), OPTIONS, ids=[options for options, _ in OPTIONS])
def test_bad_options_are_refused(
    options: str, sentence: str, fedleak: Command, tmp_path: Path
) -> None:
    config = write_yaml(settings(tiny_data(tmp_path)))
    refuses(fedleak("run", "--config", config, *options.split()), sentence)


FILES: list[tuple[str, Any, str]] = [
    ("misspelt key", {"sede": 1}, r"Unknown setting `sede`: .* Did you mean `seed`\?$"),
    ("misspelt inner key", {"federation": {"clinets": 3}}, r"Unknown setting of federation "
     r"`clinets`: expected one of alpha, .* Did you mean `clients`\?$"),
    ("misspelt plugin", {"attacks": ["igga"]}, r"Unknown attack `igga`.* Did you mean `iga`\?$"),
    ("misspelt model", {"model": "smpl"}, r"Unknown model `smpl`: .* Did you mean `smlp`\?$"),
    ("misspelt setting of a plugin", {"attacks": [{"class_path": "iga", "init_args": {"iter": 3}}]},
     r"Unknown setting of iga `iter`: .* Did you mean `iterations`\?$"),
    ("misspelt setting of the model", {"model": {"class_path": "smlp", "init_args": {"widht": 3}}},
     r"Unknown setting of smlp `widht`: .* Did you mean `width`\?$"),
    ("misspelt setting of precode",
     {"model": {"class_path": "smlp", "init_args": {"precode": {"betta": 3}}}},
     r"Unknown setting of precode `betta`: .* Did you mean `beta`\?$"),
    ("misspelt init_args", {"model": {"class_path": "smlp", "int_args": {}}},
     r"Unknown setting of model `int_args`: .* Did you mean `init_args`\?$"),
    ("settings in the wrong place", {"model": {"class_path": "smlp", "width": 3}},
     r"Unknown setting of model `width`: expected one of class_path, init_args\.$"),
    ("no class path", {"attacks": [{"init_args": {}}]},
     r"Expected `attacks` to be given, got nothing: see `fedleak list attacks`\.$"),
    ("a number for a plugin", {"data": 4}, r"Expected `data` to name one of .*photos.*, got `4`\."),
    ("a number for a section", {"federation": 3}, r"Expected settings as `name: value` in "
     r"`federation`, got `3`\.$"),
    ("a list for a section", {"victims": [1]}, r"in `victims`, got `\[1\]`\.$"),
    ("true for precode", {"model": {"class_path": "smlp", "init_args": {"precode": True}}},
     r"Expected `model.precode` to be settings as `name: value` or null, got `true`\.$"),
    ("wrong type", {"federation": {"clients": "two"}}, r"`federation.clients` to be a whole"),
    ("wrong type of a plugin's setting",
     {"attacks": [{"class_path": "iga", "init_args": {"iterations": "x"}}]},
     r"Expected `attacks.iterations` to be a whole number, got `x`\.$"),
    ("no value", {"seed": None}, r"Expected `seed` to be a whole number, got nothing\.$"),
    ("out of range", {"federation": {"clients": 0}}, r"to be at least 1, got 0\.$"),
    ("data without its path", {"data": "npz"}, r"Expected a value for `data.path`, got nothing: "
     r"give `--data.path`\.$"),
    ("not YAML", "a: [1\nb: }", r"Expected YAML in `.*config.yaml`, got a mistake in line 2: "),
    ("a list", "- 1\n- 2", r"Expected settings as `name: value` in .*, got `\[1, 2\]`\.$"),
    ("prose", "Dear computer", r"Expected settings as `name: value` in .*, got `Dear computer`\.$"),
    ("nothing", "", r"Expected settings as `name: value` in `.*config.yaml`, got nothing\.$"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "sentence"), [f[1:] for f in FILES], ids=[f[0] for f in FILES])
def test_bad_files_are_refused(
    values: Any, sentence: str, fedleak: Command, tmp_path: Path
) -> None:
    whole = settings(tiny_data(tmp_path), **values) if isinstance(values, dict) else values
    refuses(fedleak("run", "--config", write_yaml(whole)), sentence)


def test_files_that_cannot_be_read_are_refused(fedleak: Command, tmp_path: Path) -> None:
    refuses(fedleak("run", "--config", "nosuch.yaml"), r"a YAML file at `nosuch.yaml`, found none")
    refuses(fedleak("run", "--config", tmp_path), r"Expected a YAML file at `.*`, found none")
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    refuses(fedleak("run", "--config=binary.yaml"), r"Expected a readable YAML file, got `binary.y")
    refuses(fedleak("run", "--config"), r"Expected a value after `--config`, got nothing")


@pytest.mark.parametrize("missing", ["data", "model"])
def test_what_must_be_given(missing: str, fedleak: Command, tmp_path: Path) -> None:
    values = settings(tiny_data(tmp_path))
    del values[missing]
    refuses(
        fedleak("run", "--config", write_yaml(values)),
        rf"Expected `--{missing}` with one of .*, got nothing: see `fedleak list {missing}",
    )


def test_unknown_commands_are_refused(fedleak: Command) -> None:
    refuses(fedleak("rnu"), r"Unknown command `rnu`: expected one of .*run.* Did you mean `run`\?$")
    refuses(fedleak("list", "atacks"), r"`atacks`: expected one of all, attacks, .*`attacks`\?$")
    refuses(fedleak("--verbose"), r"Unknown setting `verbose`")


def test_an_output_that_exists_is_refused(fedleak: Command, tmp_path: Path) -> None:
    config = write_yaml(settings(tiny_data(tmp_path)))
    Path("old").mkdir()
    Path("old/notes.txt").touch()
    refuses(fedleak("run", "--config", config, "--output", "old"), "choose another `--output`")
    Path("file").touch()
    refuses(fedleak("run", "--config", config, "--output", "file"), "choose another `--output`")
    assert [path.name for path in Path("old").iterdir()] == ["notes.txt"]

    assert fedleak("run", "--config", config, "--output", "mine").code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("mine").rglob("*")}
    refuses(
        fedleak("run", "--config", config, "--output", "mine"),
        r"continue it with `--resume`, replace it with `--overwrite`, or choose another `--output`",
    )
    refuses(
        fedleak("run", "--config", config, "--output", "mine", "--seed", 1, "--resume"),
        r"Expected the configuration of mine/config.yaml to resume it, got another one",
    )
    assert {path: path.stat().st_mtime_ns for path in Path("mine").rglob("*")} == before
    assert fedleak("run", "--config", config, "--output", "mine", "--resume").code == 0
    assert fedleak("run", "--config", config, "--output", "mine", "--overwrite").code == 0


def test_a_refused_run_leaves_the_figures_of_another_one_alone(
    fedleak: Command, finished: Finished
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.folder.path.rglob("*")}
    said = fedleak("run", "--data", "photos", "--model", "smlp", "--output", finished.folder.path)
    refuses(said, "Expected no run at")
    assert {p: p.stat().st_mtime_ns for p in finished.folder.path.rglob("*")} == before


# ---------------------------------------------------------------------------------- fedleak attack


def test_attack_a_run(fedleak: Command, finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.folder.path, "source")
    said = fedleak(
        "attack", "source", "--attack", "iga", "--attack.iterations", 4, "--seed", 9,
        "--metrics.space", "normalised",
    )  # fmt: skip
    assert said.code == 0, said.err
    config = RunConfig.load(Path("source-iga/config.yaml"))
    assert config.seed == 9
    assert config.metrics == replace(finished.config.metrics, space="normalised")
    assert config.output == "source-iga"
    assert [plugin.init_args["iterations"] for plugin in config.attacks] == [4]
    assert len(read_rows(Path("source-iga/results.csv"))) == 2 * 8 * 2
    assert "What the updates leak" in said.out


def test_attack_one_update_without_known_labels(
    fedleak: Command, finished: Finished, tmp_path: Path
) -> None:
    update = finished.folder.updates() / "r0001-c0003.safetensors"
    said = fedleak(
        "attack", update, "--attack=nra", "--attack.iterations=4", "--labels", "recovered",
        "--output", "out",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert RunConfig.load(Path("out/config.yaml")).victims.labels == "recovered"
    assert [row["client"] for row in read_rows(Path("out/results.csv"))] == [3, 3]


def test_attack_with_a_method_for_labels(fedleak: Command, finished: Finished) -> None:
    update = finished.folder.updates() / "r0001-c0003.safetensors"
    said = fedleak(
        "attack", update, "--attack=iga", "--attack.iterations=4", "--labels", "row_minima",
        "--output", "out",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert RunConfig.load(Path("out/config.yaml")).victims.labels == "row_minima"
    assert "labels recovered by row_minima" in " ".join(said.out.split())


def test_attack_a_run_whose_weights_are_gone(fedleak: Command, finished: Finished) -> None:
    """They are in the updates' files, so the file that the run began with is not wanted again."""
    shutil.copytree(finished.folder.path, "source")
    settings = yaml.safe_load(Path("source/config.yaml").read_text())
    Path("source/config.yaml").write_text(
        yaml.safe_dump(settings | {"weights": "gone.st", "baseline": False})
    )
    said = fedleak("attack", "source", "--attack", "iga", "--attack.iterations", 1)
    assert said.code == 0, said.err
    assert RunConfig.load(Path("source-iga/config.yaml")).weights is None


def test_attack_here(fedleak: Command, finished: Finished, monkeypatch: Any) -> None:
    shutil.copytree(finished.folder.path, "source")
    monkeypatch.chdir("source")
    assert fedleak("attack", ".", "--attack", "iga", "--attack.iterations", 1).code == 0
    assert Path("../source-iga/results.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], r"Expected a value for `source`, got nothing"),
        (["SOURCE"], r"Expected `--attack` with one of .*iga, .*, got nothing: see `fedleak list"),
        (["SOURCE", "--attack", "igga"], r"Unknown attack `igga`: .* Did you mean `iga`\?$"),
        (["SOURCE", "--attack", "iga", "--attack.iterations", "0"], r"`iterations` to be at least"),
        (["SOURCE", "--attack", "iga", "--attack.iter", "1"], r"Unknown setting of iga `iter`"),
        (["SOURCE", "--attack", "iga", "--labels", "some"], r"Unknown value of `labels` `some`"),
        (["SOURCE", "--attack", "iga", "--metrics.space", "pixel"], r"Did you mean `pixels`\?$"),
        (["SOURCE", "--attack", "iga", "--metrics.success_threshold", "2"], r"to be from -1 to 1"),
        (["SOURCE", "--attack", "iga", "--labels", "idlg"], r"`victims.labels` to fit the batches"),
        (["SOURCE", "--attack", "iga", "--output", "SOURCE"], r"another folder than that of the"),
        (["elsewhere", "--attack", "iga"], r"Expected the folder of a run or an update file"),
        (["SOURCE/updates/r0009-c0000.safetensors", "--attack", "iga"], r"Expected saved updates"),
    ],
)  # fmt: skip
def test_bad_attacks_are_refused(
    arguments: list[str], sentence: str, fedleak: Command, finished: Finished
) -> None:
    source = str(finished.folder.path)
    given = [argument.replace("SOURCE", source) for argument in arguments]
    output = [] if "--output" in given else ["--output", "out"]
    refuses(fedleak("attack", *given, *output), sentence)


def test_damaged_updates_are_refused(fedleak: Command, finished: Finished) -> None:
    shutil.copytree(finished.folder.path, "source")
    update = Path("source/updates/r0001-c0000.safetensors")
    update.write_bytes(update.read_bytes()[:-64])
    for source in ("source", update):
        said = fedleak("attack", source, "--attack", "iga", "--output", "out")
        refuses(said, r"Expected a complete safetensors file at .*r0001-c0000.*: copy it again\.$")


def test_updates_of_another_model_are_refused(fedleak: Command, finished: Finished) -> None:
    shutil.copytree(finished.folder.path, "source")
    config = Path("source/config.yaml")
    config.write_text(config.read_text().replace("width: 12", "width: 13"))
    said = fedleak("attack", "source", "--attack", "iga", "--output", "out")
    refuses(said, r"Expected `.*` of shape .*: give the model that the federation trained\.$")


def test_a_broken_configuration_of_a_run_is_refused(fedleak: Command, finished: Finished) -> None:
    shutil.copytree(finished.folder.path, "source")
    for text, sentence in (
        ("model: [", r"Expected YAML in `source/config.yaml`"),
        ("- 1", r"Expected a mapping in source/config.yaml, got `\[1\]`"),
        ("sede: 1", r"Unknown setting `sede`"),
        ("seed: 1", r"Expected `data` to be given, got nothing: see `fedleak list data`"),
        ("federation: 3", r"Expected settings as `name: value` in `federation`, got `3`"),
        (
            "federation: {clients: two}",
            r"`federation.clients` to be a whole number or null, got `two`",
        ),
    ):
        Path("source/config.yaml").write_text(text)
        refuses(fedleak("attack", "source", "--attack", "iga", "--output", "out"), sentence)


# ---------------------------------------------------------------------------------------- the end


def test_a_federation_that_breaks_down_is_told_in_a_sentence(
    fedleak: Command, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    values = settings(tiny_data(tmp_path))
    values["federation"] |= {
        "rounds": 2, "strategy": "tests.test_experiment.Stubborn",
        "strategy_options": {"flag": str(flag)},
    }  # fmt: skip
    said = fedleak("run", "--config", write_yaml(values))
    assert said.code == 1
    (line,) = said.err.splitlines()
    assert line == (
        "fedleak: The federation failed: no memory left. The results so far are kept: continue "
        "with `--resume`."
    )


def test_an_interruption_leaves_signals_as_they_were(
    fedleak: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    from fedleak.reporting import Display

    monkeypatch.setattr(
        Display, "attack_progressed", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    said = fedleak("run", "--config", write_yaml(settings(tiny_data(tmp_path))))
    assert said.code == 130
    assert said.err == "fedleak: interrupted.\n"
    assert "Run interrupted; continue it with `--resume`." in said.out
    assert json.loads(Path("out/summary.json").read_text())["status"] == "interrupted"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


class Process:
    """``fedleak`` as a process of its own, in its own session, with all its children watched."""

    def __init__(self, *arguments: object) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "fedleak.cli.main", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        self.lines: list[str] = []

    def wait_for(self, text: str) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line)
            if text in line:
                return
        raise AssertionError(f"no `{text}` in {self.lines}, but {self.popen.communicate()[1]}")

    def stop(self, number: signal.Signals, *, group: bool) -> tuple[int, str]:
        """Exit code and errors; nothing of it may be left."""
        family = psutil.Process(self.popen.pid).children(recursive=True)
        (os.killpg if group else os.kill)(self.popen.pid, number)
        try:
            _, errors = self.popen.communicate(timeout=60)
        finally:
            if self.popen.poll() is None:
                os.killpg(self.popen.pid, signal.SIGKILL)
        # They are gone at once, but for a machine that is busy with something else.
        _, alive = psutil.wait_procs(family, timeout=30)
        left = [p.name() for p in alive if p.status() != psutil.STATUS_ZOMBIE]
        for process in alive:
            process.kill()
        assert left == []
        return self.popen.returncode, errors


@pytest.mark.parametrize(
    ("number", "group"),
    [
        pytest.param(signal.SIGINT, True, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, False, id="SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_a_signal_during_the_federation(
    number: signal.Signals, group: bool, tmp_path: Path
) -> None:
    values = settings(tiny_data(tmp_path), model="tests.federation.user_models.Slow")
    values["federation"] |= {"rounds": 3, "protocol": "fedavg", "batch_size": 16}
    values["victims"] = {"clients": [0, 1], "rounds": [1, 3]}
    config = write_yaml(values)
    process = Process("run", "--config", config)
    process.wait_for("round 1:")
    code, errors = process.stop(number, group=group)
    assert code == 130
    # Ray's core may log that a worker died before it could tell.
    own = [line for line in errors.splitlines() if "task_manager.cc" not in line]
    assert own == ["fedleak: interrupted."]
    assert json.loads(Path("out/summary.json").read_text())["status"] == "interrupted"
    assert sorted(path.name for path in Path("out/updates").glob("*-c*")) == [
        f"r0001-c000{client}.safetensors" for client in range(2)
    ]
    # Resumed, and compared with a run that nobody interrupted; both in this process.
    for extra in (["--resume"], ["--output", "whole"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["run", "--config", str(config), *extra])
        assert caught.value.code == 0
    rows = [without_seconds(read_rows(RunFolder(Path(n)).results)) for n in ("out", "whole")]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2 * 2 * 16


@pytest.mark.parametrize(
    ("number", "group"),
    [
        pytest.param(signal.SIGTERM, False, id="SIGTERM"),
        pytest.param(signal.SIGINT, True, id="Ctrl-C", marks=pytest.mark.slow),
    ],
)
def test_a_signal_during_an_attack(
    number: signal.Signals, group: bool, finished: Finished, tmp_path: Path
) -> None:
    arguments = [
        "attack", str(finished.folder.path), "--attack", "iga", "--attack.iterations", "300",
        "--attack.at_once", "1", "--output", "out",
    ]  # fmt: skip
    process = Process(*arguments)
    process.wait_for("Attack iga on smlp")
    results = Path("out/results.csv")
    while not results.is_file():
        time.sleep(0.1)
    code, errors = process.stop(number, group=group)
    assert (code, errors) == (130, "fedleak: interrupted.\n"), errors
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["status"] == "interrupted"
    done = read_rows(results)
    assert summary["attacks"][0]["n"] == len(done)
    assert 0 < len(done) < 32
