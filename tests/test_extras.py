"""Which package comes with which extra, and what is said where one is missing."""

import ast
import configparser
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from fedleak.errors import BadInput
from fedleak.extras import EXTRAS, MissingExtra, extras_explained

ROOT = Path(__file__).parents[1]


def requirements(text: str) -> set[str]:
    """The names of the distributions in an option of setup.cfg, as they are compared."""
    found = (re.match(r"[\w.-]+", line) for line in text.split("\n"))
    return {re.sub(r"[-_.]+", "-", name[0]).lower() for name in found if name}


@pytest.fixture(scope="module")
def wanted() -> dict[str, set[str]]:
    """Extra -> its distributions, as setup.cfg has them; those of fedleak alone under an empty."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    found = {extra: requirements(parser["options.extras_require"][extra]) for extra in EXTRAS}
    return {"": requirements(parser["options"]["install_requires"])} | found


def imported() -> set[str]:
    """The packages besides the standard library that fedleak imports anywhere."""
    roots = set()
    for path in (ROOT / "fedleak").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                roots.add(node.module.partition(".")[0])
    return roots - set(sys.stdlib_module_names) - {"fedleak"}


def test_every_import_is_installed_by_what_setup_cfg_says(wanted: dict[str, set[str]]) -> None:
    distributions = packages_distributions()
    of_extra = {module: extra for extra, modules in EXTRAS.items() for module in modules}
    # Flower's own extra installs Ray.
    known = {"ray": {"flwr"}}
    for module in imported():
        names = known.get(module) or {
            re.sub(r"[-_.]+", "-", name).lower() for name in distributions[module]
        }
        extra = of_extra.get(module, "")
        assert names & wanted[extra], f"{module} is imported, {names} not in `{extra}`"


def test_a_missing_package_of_an_extra_is_explained() -> None:
    with (
        pytest.raises(
            MissingExtra,
            match=r"^Expected the extra `federation` of fedleak, but `flwr` is not installed: pip "
            r"install 'fedleak\[federation\]'\.$",
        ) as caught,
        extras_explained(),
    ):
        raise ModuleNotFoundError("No module named 'flwr.app'", name="flwr.app")
    assert isinstance(caught.value, BadInput)
    assert isinstance(caught.value, ImportError)
    assert caught.value.name == "flwr"


@pytest.mark.parametrize("name", ["flwrs", "fedleak.nowhere", None])
def test_another_missing_package_is_left_as_it_is(name: str | None) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"^it is gone$"), extras_explained():
        raise ModuleNotFoundError("it is gone", name=name)
