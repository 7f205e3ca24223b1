"""The README's code blocks and commands do what it says."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from fedleak.cli import main as cli
from fedleak.cli.arguments import parse
from fedleak.config import RunConfig
from fedleak.registry import names
from fedleak.reporting.plugin_tables import plugin_facts
from tests.experiments.studies import script

README = Path(__file__).parents[1] / "README.md"
CONFIGS = README.parent / "experiments" / "main-job"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_five_lines_run(folder, capsys):
    (block,) = blocks("python")
    torch.manual_seed(0)
    names: dict = {}
    exec(block, names)
    found = names["found"]
    assert found.explained > 0.99
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "1 sample of shape (3, 32, 32), labels [7], by rgap: explains 100.0% of"
    )
    assert second.startswith("ssim 1.0000")
    assert second.endswith("labels 100% right")
    # A line for each statement behind the setting up.
    lines = [line for line in block.split("what the client sends\n")[1].splitlines() if line]
    assert len(lines) <= 5


def test_it_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize(("kind", "title"), [("attacks", "attack"), ("defenses", "defence")])
def test_the_tables_name_every_plugin(kind, title):
    text = README.read_text(encoding="utf-8")
    table = text.split(f"| {title} |")[1].split("\n\n")[0]
    lines = {}
    for line in table.splitlines()[2:]:
        for name in re.findall(r"`(\w+)`", line.split("|")[1]):
            lines[name] = line
    assert set(names(kind)) <= set(lines)
    if kind == "attacks":
        for row in plugin_facts(kind):
            assert f"| {row['family']} |" in lines[row["name"]]


def test_links_lead_to_files():
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+?)\)", text):
        if not target.startswith("http"):
            assert (README.parent / target).exists(), target


@pytest.mark.usefixtures("data_folder")
def test_the_guess_without_the_update(data_folder, monkeypatch):
    monkeypatch.setenv("FEDLEAK_DATA", str(data_folder))
    found = script(CONFIGS / "guess.py").main(CONFIGS / "cifar10.yaml")
    text = README.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if "guess without the update |" in line)
    mean, deviation, count = found["ssim"]
    assert f"{mean:.4f} ± {deviation:.4f}" in row
    assert f"0 of {count}" in row


def test_every_command_and_configuration_is_understood(folder):
    text = README.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^\$ fedleak (run .*)$", text, re.MULTILINE)
    assert len(commands) >= 1
    for command in commands:
        arguments = shlex.split(command.replace("experiments/main-job", str(CONFIGS)))
        assert cli._run_config(parse(arguments).run).federation.clients >= 1


@pytest.mark.parametrize("name", ["demo", "photos", "cifar10"])
def test_configurations_of_the_main_job_differ_in_data_and_length_only(name):
    config = cli._run_config(parse(["run", "--config", str(CONFIGS / f"{name}.yaml")]).run)
    assert isinstance(config, RunConfig)
    assert config.model_name == "smlp+precode"
    assert config.baseline
    assert config.federation.protocol == "fedsgd"
    assert config.federation.batch_size == 1
