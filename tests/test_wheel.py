"""The wheel, in a fresh environment with what it requires and no extra."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]

# What an extra installs is not there; the script says so, should it be otherwise.
ABSENT = """
from importlib.util import find_spec

for name in ("flwr", "ray", "pytorch_lightning", "jsonargparse", "rich", "tensorboard"):
    assert find_spec(name) is None, f"{name} is installed"
"""

# The five lines on a plain module: an untrained LeNet, with and without PRECODE.
FRONT_DOOR = """
import fedleak
import torch
from torch import nn
from torch.nn.functional import cross_entropy

class LeNet(nn.Sequential):
    def __init__(self, bottleneck):
        body = [
            nn.Conv2d(3, 12, 5, stride=2, padding=2), nn.Sigmoid(),
            nn.Conv2d(12, 12, 5, stride=2, padding=2), nn.Sigmoid(),
            nn.Conv2d(12, 12, 5, padding=2), nn.Sigmoid(), nn.Flatten(),
        ]
        guard = [fedleak.VariationalBottleneck(768, bottleneck_size=256)] if bottleneck else []
        super().__init__(*body, *guard, nn.Linear(768, 10))
        for value in self.parameters():
            nn.init.uniform_(value, -0.5, 0.5)

for bottleneck in (False, True):
    torch.manual_seed(0)
    net, images, labels = LeNet(bottleneck), torch.rand(1, 3, 32, 32), torch.tensor([2])
    loss = cross_entropy(net(images), labels)
    gradient = torch.autograd.grad(loss, list(net.parameters()))
    found = fedleak.attack(net, gradient, input_shape=(3, 32, 32))
    scores = fedleak.score(found, images, labels)
    print(found.method, found.labels.tolist(), round(scores.ssim, 3))
"""


def installed_for(requirements: list[str]) -> Iterator[Distribution]:
    """The distributions here that requirements need, directly or not."""
    seen, left = set(), [Requirement(text) for text in requirements]
    while left:
        wanted = left.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        found = distribution(wanted.name)
        yield found
        for inner in map(Requirement, found.requires or ()):
            extras = wanted.extras or {""}
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
                left.append(inner)


def run(*command: object) -> str:
    # Without PYTHONPATH, which may lead to the sources and to what is installed here.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, as building leaves files beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "fedleak", source / "fedleak")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, source)
    (found,) = folder.glob("fedleak-*.whl")
    return found


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and links to what it requires without extras."""
    folder = tmp_path_factory.mktemp("core") / "venv"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)
    paths = run(python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    packages = Path(paths.strip())
    wanted = metadata(wheel).get_all("Requires-Dist")
    for found in installed_for([text for text in wanted if "extra ==" not in text]):
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            link = packages / top
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))).resolve())
    return folder


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_string(archive.read(name).decode())


def test_the_wheel_holds_what_is_read_at_run_time(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    data = ("*.pyi", "*.yaml", "*.html", "*.css", "*.py", "py.typed")
    wanted = {str(path.relative_to(ROOT)) for end in data for path in (ROOT / "fedleak").rglob(end)}
    assert wanted <= inside
    assert not [name for name in inside if name.startswith("tests")]


def test_the_core_attacks_a_gradient_without_any_extra(core: Path) -> None:
    assert run(core / "bin" / "python", "-I", "-c", ABSENT) == ""
    found = run(core / "bin" / "python", "-I", "-c", FRONT_DOOR).splitlines()
    assert [line.split()[0] for line in found] == ["rgap", "exact_nra"]
    for line in found:
        name, labels, ssim = line.split()
        assert labels == "[2]", name
        assert float(ssim) >= 0.99, name


def test_the_command_line_names_the_extra_that_it_needs(core: Path) -> None:
    found = subprocess.run(
        [core / "bin" / "fedleak", "--help"], capture_output=True, text=True,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert found.returncode == 2
    assert re.fullmatch(
        r"fedleak: Expected the extra `federation` of fedleak, but `\w+` is not installed: pip "
        r"install 'fedleak\[federation\]'\.\n",
        found.stderr,
    )
