"""The names that users import, and what works where Flower is not installed."""

import ast
import importlib
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedleak
from fedleak.build import make_data, make_model
from fedleak.config import Federation, RunConfig
from fedleak.registry import Plugin
from fedleak.runs.folder import RunFolder
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate
from tests.cases import client_gradient

ROOT = Path(fedleak.__file__).parent


def packages() -> Iterator[str]:
    yield "fedleak"
    for module in pkgutil.walk_packages([str(ROOT)], "fedleak."):
        if module.ispkg:
            yield module.name


@pytest.mark.parametrize("name", list(packages()))
def test_every_public_name_resolves(name: str) -> None:
    package = importlib.import_module(name)
    public = getattr(package, "__all__", [])
    assert len(set(public)) == len(public)
    for item in public:
        assert getattr(package, item) is not None, item


@pytest.mark.parametrize("name", ["fedleak", "fedleak.attacks", "fedleak.data", "fedleak.models"])
def test_a_catalogue_lists_all_that_it_imports(name: str) -> None:
    """What a package's __init__ imports from fedleak is there to be found by its readers."""
    package = importlib.import_module(name)
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fedleak")
        for alias in node.names
    }
    assert imported
    assert imported <= set(package.__all__)


def test_version() -> None:
    assert fedleak.__version__.split(".")[0].isdigit()


def test_typed() -> None:
    assert (ROOT / "py.typed").exists()


# -------------------------------------------------------------------------------- without Flower

ATTACK = """
import sys

for name in ("flwr", "ray"):
    sys.modules[name] = None  # importing it fails as if it were not installed

from pathlib import Path

import fedleak
from fedleak.registry import Plugin

source, output = (Path(argument) for argument in sys.argv[1:])
config = fedleak.RunConfig.load(source / "config.yaml")
config = type(config)(
    **vars(config)
    | {"output": str(output), "attacks": (Plugin("fedleak.attacks.nra.NRA", {"iterations": 2}),)}
)
summary = fedleak.attack_run(source, config)
print(summary["status"], [entry["n"] for entry in summary["attacks"]])
update = fedleak.InterceptedUpdate.load(source / "updates" / "r0001-c0001.safetensors")
print(update.key, update.model)
print(sorted(name for name in sys.modules if name.split(".")[0] in ("flwr", "ray")))
"""

ATTACKS_ALONE = """
import sys

for name in ("flwr", "ray", "pytorch_lightning", "lightning"):
    sys.modules[name] = None

import importlib.util
import types

# The packages' own __init__ are catalogues for users; an attack's modules need neither.
for name in ("fedleak", "fedleak.models"):
    package = types.ModuleType(name)
    package.__path__ = [sys.argv[1] + name.removeprefix("fedleak").replace(".", "/")]
    sys.modules[name] = package

from fedleak.attacks import IGA, NRA

print(IGA(), NRA())
print(sorted(name for name in sys.modules if name.startswith("fedleak.models.")))
"""


def python(code: str, *arguments: object) -> list[str]:
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


@pytest.fixture
def saved_run(tmp_path: Path) -> Path:
    """A run of PRECODE on photographs whose federation is over: one saved update."""
    config = RunConfig(
        data=Plugin("fedleak.data.photos.Photos"),
        model=Plugin("fedleak.models.mlp.SMLP", {"width": 8, "precode": {"bottleneck_size": 3}}),
        output=str(tmp_path / "run"),
        federation=Federation(clients=2),
    )
    folder = RunFolder(Path(config.output))
    folder.open(config, resume=False, overwrite=False)
    data = make_data(config)
    model = make_model(config, data)
    inputs, labels = data.train_set.batch([7])
    gradient, noise = client_gradient(model, inputs, labels)
    InterceptedUpdate(1, 1, "fedsgd", 1, config.model_name, model.state_dict(), gradient).save(
        folder.updates()
    )
    GroundTruth(inputs, labels, noise).save(folder.truth() / "r0001-c0001.safetensors")
    return folder.path


def test_a_saved_update_is_attacked_without_flower(saved_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "attacked"
    printed = python(ATTACK, saved_run, output)
    assert printed[-3:] == ["complete [1]", "r0001-c0001 smlp+precode", "['flwr', 'ray']"]
    assert (output / "results.csv").read_text(encoding="utf-8").count("\n") == 2
    assert list((output / "figures" / "victims").glob("*.png"))


def test_the_attacks_need_torch_and_little_else() -> None:
    printed = python(ATTACKS_ALONE, ROOT)
    assert printed[0].startswith("IGA(iterations=7000")
    assert printed[1] == "['fedleak.models.noise']"


@pytest.mark.parametrize("chosen", [None, "0"])
def test_large_tensors_lie_in_large_pages_unless_somebody_chose_otherwise(
    chosen: str | None,
) -> None:
    """torch has to find the setting before its first tensor, and processes before they start."""
    names = ("THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES")
    code = f"import os, fedleak; print([os.environ[name] for name in {names}])"
    before = {name: value for name, value in os.environ.items() if name not in names}
    given = {} if chosen is None else dict.fromkeys(names[:1], chosen)
    found = subprocess.run(
        [sys.executable, "-c", code], env=before | given, capture_output=True, text=True, check=True
    )
    expected = [chosen or "1", "glibc.malloc.hugetlb=1"]
    assert ast.literal_eval(found.stdout.splitlines()[-1]) == expected
