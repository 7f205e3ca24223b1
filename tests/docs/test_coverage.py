"""What is not documented is named."""

import sys
from types import ModuleType

import pytest

from docs import coverage
from docs.public import homes


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("some_module")
    source = '''
class Silent: pass

class Half:
    """Documented."""

    def told(self): "What it does."
    def untold(self): pass
    @property
    def size(self): pass
    def _own(self): pass

class Heir(Half):
    """Documented."""

    def told(self): pass

def function(): pass
'''
    exec(source, made.__dict__)
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def test_each_lack_is_named(module: ModuleType) -> None:
    places = {n: f"some_module.{n}" for n in ("Silent", "Half", "Heir", "function")}
    entries = {"some_module.Silent", "some_module.Half", "some_module.Heir"}
    assert coverage.undocumented(places, entries) == [
        "some_module.Silent has no docstring",
        "some_module.Half.untold has no docstring",
        "some_module.Half.size has no docstring",
        "some_module.function has no entry in the reference",
        "some_module.function has no docstring",
    ]


def test_every_public_name_of_fedleak_has_a_docstring() -> None:
    places = homes()
    assert coverage.undocumented(places, set(places.values())) == []


@pytest.mark.parametrize(
    ("module_name", "target", "there"),
    [
        ("fedleak.attacks.labels", "recover_labels", True),
        ("fedleak.attacks.base", "Attack.refuses", True),
        ("", "fedleak.updates.knowledge.Knowledge", True),
        ("fedleak.attacks.base", "Attack.refusess", False),
        ("", "fedleak.updates.knowledge.Knowlege", False),
        ("", "torch.Tensor", False),
    ],
)
def test_links_are_checked_by_importing(module_name: str, target: str, there: bool) -> None:
    assert coverage._exists(module_name, target) is there
