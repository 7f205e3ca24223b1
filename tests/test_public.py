"""The names that users import, and what works where Flower is not installed."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import fedleak
from fedleak.build import make_data, make_model
from fedleak.config import Federation, RunConfig
from fedleak.registry import KINDS, Plugin, names
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_catalogue_lists_every_plugin(kind: str) -> None:
    """What has a name on the command line has one in its package and in fedleak itself."""
    package = importlib.import_module(f"fedleak.{kind}")
    ours = [point for point in names(kind).values() if point.value.startswith("fedleak.")]
    assert ours
    for point in ours:
        module, _, name = point.value.partition(":")
        found = getattr(importlib.import_module(module), name)
        assert name in package.__all__
        assert name in fedleak.__all__
        assert getattr(package, name) is found
        assert getattr(fedleak, name) is found


def test_a_public_name_of_a_package_is_the_same_in_fedleak() -> None:
    """No two packages give one name to different things, but for the function of the one-liner.

    ``fedleak.score`` gives the means of a batch, ``fedleak.metrics.score`` a score per sample.
    """
    for kind in (*KINDS, "metrics"):
        package = importlib.import_module(f"fedleak.{kind}")
        for name in set(package.__all__) & set(fedleak.__all__):
            assert getattr(package, name) is getattr(fedleak, name), name


def test_dir_lists_the_public_names() -> None:
    assert set(fedleak.__all__) - {"__version__"} <= set(dir(fedleak))
    with pytest.raises(AttributeError, match="nowhere"):
        _ = fedleak.nowhere


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

# Prints the packages that code imports besides the standard library, and what it has changed in
# the environment.
LOADED = """
import os
import sys

before = dict(os.environ)
exec(sys.argv[1])
roots = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(*sorted(roots))
print({name: value for name, value in os.environ.items() if before.get(name) != value})
"""

NUMBERS = "import torch, numpy, safetensors.torch"
ATTACKS = "from fedleak.attacks import *"
FRONT_DOOR = """
import fedleak
for name in (
    "RGAP", "IGA", "Knowledge", "InterceptedUpdate", "GroundTruth", "Reconstruction", "BadInput",
    "Pruning", "DPSGD", "Soteria", "Precode", "kl_penalty", "noise_slots", "recover_labels",
    "total_variation", "psnr", "ssim", "score", "score_items", "assign", "Lpips",
):
    getattr(fedleak, name)
"""


@cache
def loaded(code: str) -> tuple[set[str], dict[str, str]]:
    """The packages that code imports in a process of its own, and its changed variables."""
    packages, changed = python(LOADED, code)[-2:]
    return set(packages.split()), ast.literal_eval(changed)


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


@pytest.mark.parametrize("code", ["import fedleak", "import fedleak.attacks, fedleak.models"])
def test_importing_loads_nothing_and_changes_nothing(code: str) -> None:
    packages, changed = loaded(code)
    assert packages - loaded("pass")[0] == {"fedleak", "lazy_loader"}
    assert changed == {}


@pytest.mark.parametrize("code", [ATTACKS, FRONT_DOOR])
def test_attacks_and_metrics_load_torch_numpy_and_safetensors_alone(code: str) -> None:
    packages, changed = loaded(code)
    assert packages - loaded(NUMBERS)[0] == {"fedleak", "lazy_loader"}
    assert changed == {}


def test_the_malicious_strategy_needs_flower_alone() -> None:
    code = "from fedleak.federation import MaliciousStrategy"
    flower, theirs = loaded("import flwr.serverapp.strategy, yaml")
    packages, changed = loaded(code)
    assert packages - loaded(NUMBERS)[0] - flower == {"fedleak", "lazy_loader"}
    assert not packages & {"ray", "pytorch_lightning", "psutil"}
    assert changed == theirs


@pytest.mark.parametrize(
    ("missing", "code", "extra"),
    [
        ("flwr", "from fedleak.federation import MaliciousStrategy", "federation"),
        ("ray", "from fedleak.federation import simulate", "federation"),
        ("pytorch_lightning", "import fedleak; fedleak.SMLP", "federation"),
        ("yaml", "import fedleak; fedleak.RunConfig", "federation"),
        ("tensorboard", "from fedleak.reporting import TensorBoard", "report"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(missing: str, code: str, extra: str) -> None:
    caught = f"""
import sys
sys.modules[{missing!r}] = None  # importing it fails as if it were not installed
try:
    {code}
except ImportError as error:
    print(type(error).__name__, error)
"""
    assert python(caught)[-1] == (
        f"MissingExtra Expected the extra `{extra}` of fedleak, but `{missing}` is not installed: "
        f"pip install 'fedleak[{extra}]'."
    )


def test_a_function_named_as_its_module_is_the_function() -> None:
    code = "import fedleak.data.partition; from fedleak.data import partition; print(partition)"
    assert python(code)[-1].startswith("<function partition")
