"""Each how-to, and the page that opens the docs, do what they say."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import ConfigRecord
from flwr.cli.supernode.register import try_load_public_key
from flwr.common.config import parse_config_args
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from fedleak.audit import read_app
from fedleak.cli import main as cli
from fedleak.cli.arguments import parse
from fedleak.cli.main import _run_config
from fedleak.federation import read_run_config, records
from fedleak.privacy.mechanisms import MECHANISMS
from fedleak.registry import KINDS
from fedleak.sweep import expand, load_study
from tests.audit.apps import ONE_STEP, imports_undone, write_kind
from tests.examples.flower import check_certificates
from tests.federation.fakes import FakeGrid, sends_weights

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted((DOCS / "how-to").glob("*.md"))
# Its Python starts a federation.
SLOW = ("run-a-study",)
LONGEST = 120
AUDIT = DOCS / "how-to" / "audit-a-flower-app.md"
BUDGET = DOCS / "how-to" / "count-a-privacy-budget.md"
TENSORBOARD = DOCS / "how-to" / "read-tensorboard.md"


def blocks(page: Path, language: str) -> list[str]:
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    text = "".join(blocks(page, "console")).replace("\\\n", " ")
    return [line.removeprefix("$ fedleak ") for line in text.splitlines() if "$ fedleak " in line]


def named(paths: list[Path]) -> pytest.MarkDecorator:
    cases = [
        pytest.param(path, marks=pytest.mark.slow if path.stem in SLOW else ()) for path in paths
    ]
    return pytest.mark.parametrize("page", cases, ids=[path.stem for path in paths])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder; modules that are imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    with imports_undone():
        yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) is None or name.startswith("my_"):
            del sys.modules[name]


def write_files(page: Path) -> None:
    """Write the blocks that begin with a file's name where the page's reader would."""
    if page == AUDIT:
        write_kind(Path("path/to/app"), "images", task=ONE_STEP)
    for block in blocks(page, "python") + blocks(page, "yaml"):
        if found := re.match(r"# (\w+\.(?:py|yaml))\n", block):
            Path(found[1]).write_text(block, encoding="utf-8")


def run_python(page: Path) -> ModuleType:
    """Run a page's Python, block by block, in one module."""
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module
    for number, block in enumerate(blocks(page, "python"), start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), module.__dict__)
    return module


# ------------------------------------------------------------------------------------- every page


@named([DOCS / "index.md", *(page for page in PAGES if blocks(page, "python"))])
def test_its_python_runs(page: Path, folder: Path) -> None:
    torch.manual_seed(0)
    if page == TENSORBOARD:
        with SummaryWriter("runs/demo/tensorboard/iga on smlp") as events:
            events.add_scalar("2 attacks/ssim by victim", 0.5, 0)
    module = run_python(page)
    assert len(vars(module)) > 1
    if page == TENSORBOARD:
        assert module.ssim == [0.5]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_it_is_short(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda page: page.stem)
def test_its_commands_are_understood(page: Path, folder: Path) -> None:
    write_files(page)
    for command in commands(page):
        settings = parse(shlex.split(command))
        if settings.subcommand == "run":
            config = _run_config(settings.run)
            output = Path(config.output)
            output.mkdir(parents=True, exist_ok=True)
            config.save(output / "config.yaml")
        elif settings.subcommand == "sweep":
            cells = expand(load_study(Path(settings.sweep.study)))
            # A grid of two by two with one of them skipped.
            assert len(cells) == 3
        elif settings.subcommand == "audit":
            assert read_app(Path(settings.audit.app)).server.endswith("server_app:app")
        elif settings.subcommand == "budget":
            assert settings.budget.mechanism in MECHANISMS
        else:
            source = settings[settings.subcommand].as_dict()
            assert Path(source.get("source") or source.get("run")).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda page: page.stem)
def test_its_commands_run(page: Path, folder: Path) -> None:
    write_files(page)
    for command in commands(page):
        small = re.sub(r"--federation.clients \d+", "--federation.clients 2", command)
        small = re.sub(r"(--attacks?)(\+?) (iga|nra)", r"\1\2 \3 \1.iterations 5", small)
        small = small.replace("--attack.restarts 4", "--attack.restarts 2")
        with pytest.raises(SystemExit) as ended:
            cli.main(shlex.split(small))
        assert ended.value.code == 0, small
    assert page == BUDGET or list(folder.glob("runs/*/results.csv"))


def test_a_budget_is_what_the_page_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(shlex.split(commands(BUDGET)[0]))
    found = capsys.readouterr().out.splitlines()
    (shown,) = blocks(BUDGET, "text")
    for line in shown.splitlines():
        assert any(own.startswith(line) for own in found), line


def test_what_the_app_tells_an_audit_is_understood(folder: Path) -> None:
    (block,) = blocks(AUDIT, "toml")
    app = write_kind(Path("told"), "images", task=ONE_STEP, more=block)
    assert app.settings.value_range == (-1.0, 1.0)
    assert app.settings.clients == (0, 1)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "toml") and p != AUDIT], ids=lambda p: p.stem
)
def test_its_entry_point_names_what_it_defines(page: Path) -> None:
    (block,) = blocks(page, "toml")
    ((group, points),) = tomllib.loads(block)["project"]["entry-points"].items()
    assert group.removeprefix("fedleak.") in KINDS
    for value in points.values():
        module, _, name = value.partition(":")
        text = page.read_text(encoding="utf-8")
        assert f"# {module}.py\n" in text
        assert f"class {name}(" in text


# ------------------------------------------------------------------------------------- one by one


def test_the_wrapped_strategy_reconstructs_what_a_client_trained_on(folder: Path) -> None:
    from flwr.serverapp.strategy import FedAvg

    module = run_python(DOCS / "how-to" / "attack-your-flower-app.md")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 16), nn.ReLU(), nn.Linear(16, 10))
    image, label = torch.rand(1, 3, 32, 32), torch.tensor([3])
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    channels = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    entering = (image - channels[0]) / channels[1]
    loss = nn.functional.cross_entropy(net(entering), label)
    gradient = torch.autograd.grad(loss, list(net.parameters()))
    names = [name for name, _ in net.named_parameters()]
    sent = {name: value.detach().clone() for name, value in net.named_parameters()}
    moved = {n: sent[n] - 0.1 * g for n, g in zip(names, gradient, strict=True)}

    inner = FedAvg(min_available_nodes=2, fraction_evaluate=0.0)
    strategy = module.malicious(net, mean, std, inner)
    grid = FakeGrid([7, 8], lambda question: sends_weights(question, moved, examples=1))
    strategy.start(grid, records.to_record(sent), num_rounds=1, train_config=ConfigRecord())

    assert len(strategy.reconstructions) == 2
    (_, key, found), _ = strategy.reconstructions
    assert key == "r0001-c0000"
    torch.testing.assert_close(found.inputs, entering, rtol=0, atol=1e-2)
    later = dict(module.attack_later("updates", strategy.knowledge))
    torch.testing.assert_close(later[key].inputs, entering, rtol=0, atol=1e-2)


# ------------------------------------------------------------------------------------- deployment

DEPLOYMENT = DOCS / "how-to" / "deployment.md"


def shell_lines(page: Path) -> list[list[str]]:
    text = "".join(blocks(page, "console")).replace("\\\n", " ")
    return [shlex.split(line.removeprefix("$ ")) for line in text.splitlines()]


@pytest.mark.skipif(
    shutil.which("openssl") is None or shutil.which("ssh-keygen") is None,
    reason="openssl and ssh-keygen are not installed",
)
def test_certificates_and_keys_are_what_flower_takes(folder: Path) -> None:
    for command in shell_lines(DEPLOYMENT):
        if command[0] in ("openssl", "ssh-keygen"):
            subprocess.run(command, check=True, capture_output=True, timeout=60)
    check_certificates(folder)
    for name in ("node-0", "node-1"):
        key = load_ssh_private_key(Path(name).read_bytes(), None)
        assert key.curve.name == "secp384r1"
        assert try_load_public_key(Path(f"{name}.pub"))


def test_flower_knows_the_options_of_a_deployment() -> None:
    found = {"flower-superlink": [], "flower-supernode": [], "flwr": []}
    for command in shell_lines(DEPLOYMENT):
        if command[0] in found:
            found[command[0]].append(command[1:])
    (link,) = (_parse_args_run_superlink().parse_args(c) for c in found["flower-superlink"])
    nodes = [_parse_args_run_supernode().parse_args(c) for c in found["flower-supernode"]]
    assert link.enable_supernode_auth
    assert [node.superlink for node in nodes] == [f"{link.host}:{link.port}"] * 2
    assert [parse_config_args([node.node_config]) for node in nodes] == [
        {"partition-id": number, "num-partitions": 2} for number in (0, 1)
    ]
    app = read_app(DOCS.parent / "examples" / "flower-app")
    given = [c[c.index("--run-config") + 1] for c in found["flwr"] if "--run-config" in c]
    assert len(given) == 2
    for text in given:
        read_run_config(app.run_config | parse_config_args([text]))
