"""What is read from a class's source is what the class itself says."""

import inspect
from pathlib import Path

import pytest

from fedleak.class_source import ClassSource, read_class
from fedleak.registry import KINDS, load_class, names

OURS = [
    point.value.replace(":", ".")
    for kind in KINDS
    for point in names(kind).values()
    if point.value.startswith("fedleak.")
]

SAMPLE = """
import dataclasses
from other_source import Far

class Base:
    "Not handed down."
    paper: str = "one " "two"
    needs = "much"
    def __init__(self, given, *, width=3): pass

class Derived(Base):
    needs = "little"
    paper: str

class Computed(Base):
    "It computes a fact."
    needs = Base.needs + "!"

class Open(Base):
    def __init__(self, **settings): pass

@other_source.decorated
class Decorated(Base):
    pass

@dataclasses.dataclass
class Made(Base):
    shared: ClassVar[int] = 1
    size: int = 3
    depth: int = 2

@dataclass(kw_only=True)
class MadeAgain(Made):
    depth: int = field(init=False, default=4)
    width: int = 5

class Last(MadeAgain):
    size = 4

class Elsewhere(Far):
    pass
"""


@pytest.mark.parametrize("path", OURS)
def test_the_source_of_a_plugin_says_what_the_class_says(path: str) -> None:
    found, source = load_class(path), read_class(path)
    assert source.facts.pop("__doc__") == inspect.cleandoc(found.__doc__ or "")
    for name, value in source.facts.items():
        assert getattr(found, name) == value, name
    if source.arguments is not None:
        assert set(source.arguments) == set(inspect.signature(found).parameters)


@pytest.mark.parametrize("path", [path for path in OURS if path.startswith("fedleak.attacks")])
def test_the_facts_of_an_attack_are_in_its_source(path: str) -> None:
    assert {"name", "paper", "needs"} <= set(read_class(path).facts)


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    # Names that differ between tests, as a module's source is read once.
    name = f"sample_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SAMPLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_facts_and_arguments_are_inherited(sample: str) -> None:
    assert read_class(f"{sample}.Base") == ClassSource(
        {"__doc__": "Not handed down.", "paper": "one two", "needs": "much"},
        ["given", "width"],
        ("paper",),
    )
    assert read_class(f"{sample}.Derived") == ClassSource(
        {"paper": "one two", "needs": "little"}, ["given", "width"], ("paper",)
    )


def test_arguments_of_dataclasses_are_their_fields(sample: str) -> None:
    assert read_class(f"{sample}.Made").arguments == ["size", "depth"]
    assert read_class(f"{sample}.MadeAgain").arguments == ["size", "width"]
    assert read_class(f"{sample}.Last").arguments == ["size", "width"]


@pytest.mark.parametrize(
    "path", [path for path in OURS if path.startswith(("fedleak.attacks", "fedleak.defenses"))]
)
def test_arguments_of_a_plugin_are_in_its_source(path: str) -> None:
    """But for those of a class without any, which has no constructor to be read."""
    expected = list(inspect.signature(load_class(path)).parameters)
    assert (read_class(path).arguments or []) == expected


def test_what_cannot_be_told_is_left_out(sample: str) -> None:
    computed = read_class(f"{sample}.Computed")
    assert computed.facts == {"__doc__": "It computes a fact.", "paper": "one two"}
    assert read_class(f"{sample}.Open").arguments is None
    assert read_class(f"{sample}.Decorated").arguments is None
    assert read_class(f"{sample}.Elsewhere") == ClassSource()
    for path in (f"{sample}.Nobody", "nowhere_at_all.Thing", "fedleak.models.SMLP", "SMLP"):
        assert read_class(path) == ClassSource()
