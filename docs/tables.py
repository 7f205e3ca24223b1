"""Tables of the reference, in reStructuredText: plugins with their facts, settings, help texts."""

import csv
import inspect
import io
import re
import types
import typing
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any
from unittest import mock

from docstring_parser import parse as parse_docstring

from fedleak.attacks.base import Attack
from fedleak.cli.arguments import parse
from fedleak.config import Budget, Federation, Metrics, Privacy, RunConfig, Victims
from fedleak.defenses.base import Defense
from fedleak.models.bottleneck import Precode
from fedleak.registry import load_class, names
from fedleak.servers.base import MaliciousServer

BASES: dict[str, type[Any]] = {"attacks": Attack, "defenses": Defense, "servers": MaliciousServer}
"""Kind -> the class that annotates the facts of its plugins."""
COLUMNS = {
    "attacks": ("family", "needs", "batches", "local_steps", "noise"),
    "defenses": ("family", "needs", "randomised"),
    "servers": ("changes", "needs", "rounds"),
}
"""Kind -> the facts that its overview shows, as far as there are such facts."""
ELSEWHERE = ("name", "paper", "at_once", "iterative")
"""Facts that are shown otherwise, or that are of interest to fedleak's own tests alone."""
TITLES = {
    "boxed": "stays within the valid range of inputs",
    "needs_first_linear": "needs a linear layer first",
    "takes_numbers": "takes samples that are numbers for an embedding",
    "needs_batch": "works on the gradient of one batch alone",
    "recomputes_gradient": "replaces the update of defences before it",
    "reads": "reads updates itself",
}
"""Fact -> its title, where its name does not say it to a reader."""
SECTIONS: dict[str, tuple[str, type[Any]]] = {
    "run": ("", RunConfig),
    "federation": ("federation.", Federation),
    "victims": ("victims.", Victims),
    "metrics": ("metrics.", Metrics),
    "privacy": ("privacy.", Privacy),
    "budget": ("privacy.budget.", Budget),
    "precode": ("model.precode.", Precode),
}
"""Page's section -> prefix of its settings and their dataclass."""
COMMANDS = ("run", "attack", "import", "audit", "budget", "sweep", "report", "list")


def overview(kind: str) -> str:
    """A table of the plugins of a kind: name and short facts.

    Args:
        kind: ``attacks``, ``defenses`` or ``servers``.
    """
    annotated = inspect.get_annotations(BASES[kind])
    columns = [name for name in COLUMNS[kind] if name in annotated]
    rows = [
        [_link(name, found), *(_shown(getattr(found, column, "-")) for column in columns)]
        for name, found in _plugins(kind)
    ]
    return list_table(["name", *(_title(name) for name in columns)], rows)


def details(kind: str) -> str:
    """A list of the plugins of a kind: what each is, all its facts, and its paper.

    Args:
        kind: ``attacks``, ``defenses`` or ``servers``.
    """
    facts = [n for n in inspect.get_annotations(BASES[kind]) if n not in ELSEWHERE]
    entries = []
    for name, found in _plugins(kind):
        shown = [f"*{_title(f)}*: {_shown(getattr(found, f, '-'))}" for f in facts]
        lines = [_link(name, found), f"   {summary(found)}", "", f"   {'; '.join(shown)}.", ""]
        lines += [f"   {escape(found.paper)}.", ""]
        entries.append("\n".join(lines))
    return f".. py:currentmodule:: fedleak.{kind}\n\n" + "\n".join(entries)


def summaries(kind: str) -> str:
    """A table of the plugins of a kind with the first paragraph of each docstring.

    Args:
        kind: ``data`` or ``models``.
    """
    rows = [[_link(name, found), summary(found)] for name, found in _plugins(kind)]
    table = list_table(["name", "what it is"], rows, widths=(1, 4))
    return f".. py:currentmodule:: fedleak.{kind}\n\n{table}"


def settings(section: str) -> str:
    """A table of the settings of a part of the configuration: name, type, default, meaning.

    Args:
        section: one of ``SECTIONS``.
    """
    prefix, owner = SECTIONS[section]
    texts = argument_texts(owner)
    hints = typing.get_type_hints(owner)
    rows = []
    for item in fields(owner):
        default = item.default
        if item.default_factory is not MISSING:
            default = item.default_factory()
        kind, shown = type_text(hints[item.name]), _default(default)
        if item.name in SECTIONS:
            kind, shown = "settings", "see below"
        rows.append([f"``{prefix}{item.name}``", kind, shown, texts.get(item.name, "")])
    return list_table(["setting", "type", "default", "meaning"], rows, widths=(3, 3, 2, 6))


def argument_texts(owner: type[Any]) -> dict[str, str]:
    """The docstring's text of each argument of a class, on one line."""
    parsed = parse_docstring(inspect.getdoc(owner) or "")
    return {item.arg_name: " ".join((item.description or "").split()) for item in parsed.params}


def command_help(command: str) -> str:
    """What ``fedleak COMMAND --help`` prints.

    Args:
        command: one of ``COMMANDS``, or nothing for ``fedleak --help``.
    """
    printed = io.StringIO()
    arguments = [command, "--help"] if command else ["--help"]
    # argparse takes the width from the terminal that happens to be there.
    wide = mock.patch.dict("os.environ", {"COLUMNS": "80"})
    with wide, redirect_stdout(printed), suppress(SystemExit):
        parse(arguments)
    return printed.getvalue().replace(" \b", "")  # jsonargparse moves a terminal's cursor back


def summary(found: type[Any]) -> str:
    """The first paragraph of a class's docstring, on one line."""
    return " ".join((inspect.getdoc(found) or "").partition("\n\n")[0].split())


def type_text(annotation: Any) -> str:
    """A type as a reader of YAML would name it.

    Args:
        annotation: a type, a Literal, a union of such, or a list or mapping.
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"``{value}``" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_text(item) for item in inner))
    if origin in (list, tuple):
        return f"list of {type_text(inner[0])}"
    if origin is dict or annotation is dict:
        return "mapping"
    known = {
        bool: "true or false", int: "whole number", float: "number", str: "text",
        type(None): "null", Any: "any value",
    }  # fmt: skip
    return known.get(annotation, getattr(annotation, "__name__", str(annotation)).lower())


def federations(summary: Path) -> str:
    """The table of the study of federations, from its summary.csv.

    Args:
        summary: the file.
    """
    with summary.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    rows = []
    for entry in found:
        spread = f" ± {entry['spread']}" if entry["spread"] else ""
        score = f"{entry['score']}{spread}" if entry["score"] else "refused"
        rows.append([
            escape(entry["group"]), escape(entry["setting"]), f"``{entry['attack']}``",
            escape(entry["metric"]), score, entry["guess"], entry["explained"] or "not checked",
            entry["labels"] or "known", entry["n"],
        ])  # fmt: skip
    header = [
        "group", "setting", "attack", "score", "of the attack", "of a guess", "explained",
        "labels right", "n",
    ]  # fmt: skip
    return list_table(header, rows)


def list_table(header: Sequence[str], rows: Iterable[Sequence[str]], widths: Any = "auto") -> str:
    """A table in reStructuredText.

    Args:
        header: titles of the columns.
        rows: cells, each in reStructuredText on one line.
        widths: shares of the columns; ``auto``: as wide as the cells need.
    """
    shares = widths if isinstance(widths, str) else " ".join(map(str, widths))
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {shares}", ""]
    for row in (header, *rows):
        for at, cell in enumerate(row):
            lines.append(f"   {'*' if at == 0 else ' '} - {cell}".rstrip())
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text in which nothing is markup; addresses stay links."""
    parts = re.split(r"(https?://[^\s,;]+)", text)
    return "".join(
        part if at % 2 else re.sub(r"([*`|\\]|_\b)", r"\\\1", part) for at, part in enumerate(parts)
    )


def _plugins(kind: str) -> list[tuple[str, type[Any]]]:
    """Fedleak's own plugins of a kind; other installed packages' do not belong here."""
    paths = {name: point.value.replace(":", ".") for name, point in sorted(names(kind).items())}
    return [(n, load_class(path)) for n, path in paths.items() if path.startswith("fedleak.")]


def _link(name: str, found: type[Any]) -> str:
    return f":class:`{name} <{found.__module__}.{found.__qualname__}>`"


def _title(name: str) -> str:
    return TITLES.get(name, name.replace("_", " "))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, frozenset):
        return escape(", ".join(sorted(value)))
    return escape(str(value))


def _default(value: Any) -> str:
    if value is MISSING:
        return "(required)"
    if value in ([], {}, ()):
        return "(empty)"
    if value is None:
        return "``null``"
    return f"``{str(value).lower() if isinstance(value, bool) else value}``"
