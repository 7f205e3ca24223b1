"""The generated tables say what the classes say."""

from dataclasses import fields
from typing import Any, Literal

import pytest

from docs import tables
from fedleak.cli import arguments
from fedleak.config import Federation
from fedleak.registry import names


@pytest.mark.parametrize("kind", ["attacks", "defenses"])
def test_every_plugin_has_a_row_and_an_entry(kind: str) -> None:
    overview, details = tables.overview(kind), tables.details(kind)
    for name in names(kind):
        assert overview.count(f"* - :class:`{name} <fedleak.") == 1
        assert details.count(f"\n:class:`{name} <fedleak.") == 1
    assert "arxiv.org/abs/2003.14053" in tables.details("attacks")


@pytest.mark.parametrize("kind", ["data", "models"])
def test_models_and_data_have_a_line_each(kind: str) -> None:
    table = tables.summaries(kind)
    assert [line for line in table.splitlines() if line.startswith("   * - :class:")] == [
        line for line in table.splitlines() for name in [line.partition("`")[2].partition(" ")[0]]
        if name in names(kind)
    ]  # fmt: skip
    assert table.count("* - :class:") == len(names(kind))


@pytest.mark.parametrize("section", tables.SECTIONS)
def test_every_setting_has_type_default_and_meaning(section: str) -> None:
    prefix, owner = tables.SECTIONS[section]
    cells = [line[5:].strip() for line in tables.settings(section).splitlines()[4:]]
    rows = [[c.removeprefix("- ") for c in cells[at : at + 4]] for at in range(0, len(cells), 4)]
    assert [row[0] for row in rows[1:]] == [f"``{prefix}{item.name}``" for item in fields(owner)]
    for row in rows[1:]:
        assert row[1]
        assert row[2]
        assert len(row[3]) > 5, row[0]


def test_a_setting_as_it_is_shown() -> None:
    table = tables.settings("federation")
    assert "   * - ``federation.clients_per_round``\n     - whole number or null\n" in table
    assert "   * - ``federation.rounds``\n     - whole number\n     - ``1``\n" in table
    assert "``federation.client_evaluation``\n     - true or false\n     - ``false``\n" in table
    assert "     - ``fedsgd`` or ``fedavg``\n     - ``fedsgd``\n" in table
    assert "``cpu`` or ``cuda``" in tables.settings("run")
    assert "``federation``\n     - settings\n     - see below\n" in tables.settings("run")
    text = tables.argument_texts(Federation)["alpha"]
    assert text == "concentration of the Dirichlet partition, positive; smaller is less even."


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (bool, "true or false"),
        (list[int] | None, "list of whole number or null"),
        (Literal["a", "b"] | None, "``a`` or ``b`` or null"),
        (dict[str, Any], "mapping"),
        (tuple[float, ...], "list of number"),
    ],
)
def test_types_in_words(annotation: Any, text: str) -> None:
    assert tables.type_text(annotation) == text


def test_help_is_that_of_the_command_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert set(tables.COMMANDS) == set(arguments.COMMANDS)
    for command in tables.COMMANDS:
        text = tables.command_help(command)
        assert text.startswith(f"usage: fedleak {command}")
        assert max(map(len, text.splitlines())) <= 80
        assert text.replace("\n", "").isprintable()
    every = tables.command_help("")
    assert every.startswith("usage: fedleak COMMAND")
    assert all(f"\n    {command} " in every for command in tables.COMMANDS)


def test_markup_is_escaped_and_addresses_are_not() -> None:
    text = tables.escape("at_once, a_ b* `c` https://x.org/a_b_")
    assert text == r"at_once, a\_ b\* \`c\` https://x.org/a_b_"
