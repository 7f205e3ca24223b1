"""The README's code blocks and commands do what it says."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from fedleak.cli import main as cli
from fedleak.cli.arguments import parse
from fedleak.config import RunConfig

README = Path(__file__).parents[1] / "README.md"
CONFIGS = README.parent / "experiments" / "main-job"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the README's Python files in it, and nothing of it left in sys.modules."""
    monkeypatch.chdir(tmp_path)
    names = []
    for block in blocks("python"):
        if found := re.match(r"# (\w+)\.py\n", block):
            (tmp_path / f"{found[1]}.py").write_text(block, encoding="utf-8")
            names.append(found[1])
    yield tmp_path
    for name in names:
        sys.modules.pop(name, None)


def call(command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(shlex.split(command.removeprefix("fedleak ")))
    assert ended.value.code == 0


def test_own_model_and_own_attack_run(folder, capsys):
    small = "--federation.clients 2 --attacks.iterations 20"
    commands = [line[2:] for block in blocks("console") for line in block.splitlines()]
    (own_model,) = [line for line in commands if "my_model.MyNet" in line]
    (own_attack,) = [line for line in commands if "my_attack.FirstLayer" in line]
    call(f"{own_model} {small}")
    assert (folder / "runs/my-net/summary.json").exists()
    call(own_attack.replace("runs/demo", "runs/my-net"))
    rows = (folder / "runs/first-layer/results.csv").read_text().splitlines()[1:]
    similarities = [float(row.split(",")[10]) for row in rows]
    assert len(similarities) == 2
    # The first layer gives the image away, PRECODE or not.
    assert min(similarities) > 0.99


def test_snippet_for_a_flower_app_gives_a_strategy():
    from fedleak.models import SMLP

    (snippet,) = [block for block in blocks("python") if "MaliciousStrategy" in block]
    names: dict = {}
    exec(snippet, names)
    model = SMLP(input_shape=(3, 32, 32), num_classes=10, width=8)
    strategy = names["malicious"](model, (0.5,) * 3, (0.2,) * 3)
    assert strategy.fraction_train == 1.0
    assert strategy.attacks[0].iterations == 2000


def test_every_command_and_configuration_is_understood(folder):
    text = README.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^\$ fedleak (run .*)$", text, re.MULTILINE)
    assert len(commands) >= 4
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
