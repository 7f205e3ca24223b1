"""A package that imports its public names when they are used."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedleak.extras import MissingExtra

STUB = """
from .big import Big as Big
from .needy import Needy as Needy
from .twin import twin as twin
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with three names in three modules, one of which needs Flower."""
    folder = tmp_path / "sample_package"
    folder.mkdir()
    (folder / "__init__.pyi").write_text(STUB)
    (folder / "__init__.py").write_text(
        "from fedleak.lazy import catalogue\n"
        "__getattr__, __dir__, __all__ = catalogue(__name__, __file__)\n"
    )
    (folder / "big.py").write_text("class Big: pass\n")
    (folder / "needy.py").write_text("import flwr\nclass Needy: pass\n")
    (folder / "twin.py").write_text("def twin(): return 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "flwr", None)
    yield "sample_package"
    for name in [name for name in sys.modules if name.partition(".")[0] == "sample_package"]:
        del sys.modules[name]


def test_a_name_is_imported_when_it_is_used(package: str) -> None:
    found = importlib.import_module(package)
    assert found.__all__ == ["Big", "Needy", "twin"]
    assert {"Big", "Needy", "twin"} <= set(dir(found))
    assert f"{package}.big" not in sys.modules
    assert found.Big is sys.modules[f"{package}.big"].Big
    assert f"{package}.twin" not in sys.modules


def test_a_function_hides_the_module_of_its_name(package: str) -> None:
    found = importlib.import_module(package)
    module = importlib.import_module(f"{package}.twin")
    assert found.twin is module.twin
    assert found.twin() == 2


def test_a_name_that_needs_an_extra_says_so(package: str) -> None:
    found = importlib.import_module(package)
    with pytest.raises(MissingExtra, match=r"the extra `federation` .* `flwr` is not installed"):
        _ = found.Needy
    with pytest.raises(AttributeError, match="Nowhere"):
        _ = found.Nowhere
