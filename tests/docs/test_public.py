"""Each public name has one place in the reference."""

import importlib
from pathlib import Path

import pytest

import fedleak
from docs import public

ROOT = Path(fedleak.__file__).parent


def test_every_package_with_a_catalogue_is_in_the_reference() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT.parent).parts)
        for path in ROOT.rglob("__init__.py")
        if "__all__" in path.read_text(encoding="utf-8")
    }
    # The lazy ones list their names in a stub.
    found |= {".".join(p.parent.relative_to(ROOT.parent).parts) for p in ROOT.rglob("__init__.pyi")}
    assert found == set(public.PACKAGES)


def test_a_name_of_two_packages_is_documented_by_the_inner_one() -> None:
    homes = public.homes()
    assert homes["fedleak.IGA"] == "fedleak.attacks.IGA"
    assert homes["fedleak.attacks.IGA"] == "fedleak.attacks.IGA"
    assert homes["fedleak.config.RunConfig"] == "fedleak.RunConfig"


@pytest.mark.parametrize("package", public.PACKAGES)
def test_all_names_of_a_package_are_listed_but_for_other_projects(package: str) -> None:
    module = importlib.import_module(package)
    left = set(module.__all__) - set(public.names_of(package))
    assert left == {
        "fedleak": {"__version__"}, "fedleak.models": {"LightningModule"}
    }.get(package, set())  # fmt: skip
