"""Tables of the plugins that a configuration can name, read from their classes' sources."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from fedleak.class_source import read_class
from fedleak.registry import BASES, SINGULAR, load_class, names

WITH_FACTS = ("attacks", "defenses", "servers")
COLUMNS = {
    "attacks": ("paper", "facts"),
    "defenses": ("what it is", "facts"),
    "servers": ("what it is", "facts"),
}
"""Kind -> the columns of its table besides the name; of the others, what each is."""


def plugin_table(kind: str) -> Table:
    """The table of a kind of plugin, with its facts or with a summary.

    Args:
        kind: one of :data:`fedleak.registry.KINDS`.
    """
    table = Table(title=f"{SINGULAR[kind].capitalize()}s", show_lines=kind in COLUMNS)
    table.add_column("name")
    columns = COLUMNS.get(kind, ("what it is",))
    for title in columns:
        # An address of arXiv has 32 characters and should stay in one piece in 80 columns.
        least, most = {"paper": (32, None), "facts": (None, 26)}.get(title, (None, None))
        table.add_column(title, overflow="fold", min_width=least, max_width=most)
    for row in plugin_facts(kind):
        cells = {"paper": row.get("paper"), "what it is": row["summary"], "facts": _facts(row)}
        table.add_row(row["name"], *(cells[name] for name in columns))
    return table


def plugin_facts(kind: str) -> list[dict[str, Any]]:
    """The facts of each plugin of a kind: a row per plugin, ordered by name.

    Facts are class attributes. They are read from the classes' sources, as importing all plugins
    takes seconds; a class whose source does not determine them is imported.

    Args:
        kind: one of :data:`fedleak.registry.KINDS`.

    Returns:
        For each plugin its ``name`` on the command line, its ``class_path``, and as ``summary`` the
        first sentence of its docstring; for attacks, defences and malicious servers also every
        class attribute that their base class annotates, by its name (``-`` if the plugin does not
        set it).
    """
    facts = read_class(BASES[kind]).annotated if kind in WITH_FACTS else ()
    rows = []
    for name, point in names(kind).items():
        path = point.value.replace(":", ".")
        row: dict[str, Any] = {fact: _fact(path, fact) for fact in facts}
        # A plugin's name in the registry takes precedence over its class's own name.
        summary = _summary(str(_fact(path, "__doc__") or ""))
        rows.append(row | {"name": name, "class_path": path, "summary": summary})
    return rows


def _fact(path: str, name: str) -> Any:
    facts = read_class(path).facts
    return facts[name] if name in facts else getattr(load_class(path), name, "-")


def _facts(row: Mapping[str, Any]) -> str:
    """The facts of a plugin in a few lines."""
    lines = [row.get("family"), row.get("threat_model"), f"needs {row.get('needs')}"]
    if "changes" in row:
        by = "the server" if row["reads"] else "the run's attacks"
        lines = [*lines[1:], f"rounds: {row['rounds']}", f"updates are read by {by}"]
    if "batches" in row:
        lines += [
            f"batches: {'yes' if row['batches'] else 'no'}",
            f"local steps: {row['local_steps']}",
            f"noise: {'restored' if row['restores_noise'] else row['noise']}",
        ]
    return "\n".join(map(str, lines))


def _summary(doc: str) -> str:
    """The first paragraph of a class's docstring, without cross-references."""
    paragraph = " ".join(inspect.cleandoc(doc).partition("\n\n")[0].split())
    return re.sub(r"[;,]? see :\w+:`[^`]*`", "", paragraph)
