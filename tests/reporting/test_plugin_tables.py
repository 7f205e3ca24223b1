"""The facts of plugins as rows and as tables."""

import inspect
import io
from importlib.metadata import EntryPoint

import pytest
from rich.console import Console

from fedleak.attacks import Attack
from fedleak.defenses import Defense
from fedleak.registry import KINDS, names
from fedleak.reporting.plugin_tables import plugin_facts, plugin_table


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_for_each_plugin(kind: str) -> None:
    rows = plugin_facts(kind)
    assert [row["name"] for row in rows] == list(names(kind))
    for row in rows:
        assert row["class_path"] == names(kind)[row["name"]].value.replace(":", ".")
        assert row["summary"].endswith(".")


@pytest.mark.parametrize(("kind", "base"), [("attacks", Attack), ("defenses", Defense)])
def test_rows_have_every_fact_of_the_class(kind: str, base: type) -> None:
    facts = inspect.get_annotations(base)
    for row, point in zip(plugin_facts(kind), names(kind).values(), strict=True):
        found = point.load()
        assert {fact: row[fact] for fact in facts} == {fact: getattr(found, fact) for fact in facts}


def test_facts_of_an_attack() -> None:
    rows = {row["name"]: row for row in plugin_facts("attacks")}
    found = rows["rgap"]
    assert found["class_path"] == "fedleak.attacks.exact_nra.RGAP"
    assert found["paper"].startswith("Zhu and Blaschko")
    assert (found["family"], found["noise"], found["batches"]) == ("analytic", "refused", True)
    assert (rows["iga"]["family"], rows["iga"]["at_once"]) == ("optimisation-based", 16)
    assert rows["analytic"]["batches"] is False


def test_a_plugin_that_leaves_facts_out(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("spy", "tests.spies:Spy", "fedleak.attacks")
    monkeypatch.setattr("fedleak.reporting.plugin_tables.names", lambda kind: {"spy": point})
    (row,) = plugin_facts("attacks")
    assert (row["family"], row["needs"], row["batches"]) == ("-", "nothing", True)


@pytest.mark.parametrize(("kind", "words"), [
    ("attacks", ("optimisation-based", "honest-but-curious server", "local steps: simulated",
                 "batches: no", "noise: restored", "noise: refused")),
    ("defenses", ("gradient compression", "differential privacy", "honest-but-curious server")),
])  # fmt: skip
def test_tables_show_the_facts(kind: str, words: tuple[str, ...]) -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(plugin_table(kind))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for word in words:
        assert word in text


def printed(thing: object, *, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(thing)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("kind", KINDS)
def test_lists_of_plugins_fit_a_terminal(kind: str) -> None:
    lines = printed(plugin_table(kind))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert all(f"│ {name} " in text for name in names(kind))
    assert ":class:" not in text
    if kind == "attacks":
        assert "arxiv.org/abs/2003.14053" in text
        assert "labels" in text
