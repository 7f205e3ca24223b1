"""Tables of what can be named in a configuration."""

import inspect
import re

from rich.table import Table

from fedleak.class_source import read_class
from fedleak.registry import SINGULAR, load_class, names


def plugin_table(kind: str) -> Table:
    """The plugins of a kind with what they are; attacks with paper and needs.

    Args:
        kind: ``attacks``, ``data``, ``defenses`` or ``models``.
    """
    table = Table(title=f"{SINGULAR[kind].capitalize()}s", show_lines=kind == "attacks")
    table.add_column("name")
    titles = ("paper", "needs") if kind == "attacks" else ("what it is",)
    for title in titles:
        # An address of arXiv has 32 characters and should stay in one piece in 80 columns.
        least, most = {"paper": (32, None), "needs": (None, 26)}.get(title, (None, None))
        table.add_column(title, overflow="fold", min_width=least, max_width=most)
    for name, point in names(kind).items():
        path = point.value.replace(":", ".")
        if kind == "attacks":
            table.add_row(name, _fact(path, "paper"), _fact(path, "needs"))
        else:
            table.add_row(name, _summary(_fact(path, "__doc__")))
    return table


def _fact(path: str, name: str) -> str:
    """A class attribute, from the class's source if it is written there."""
    facts = read_class(path).facts
    value = facts[name] if name in facts else getattr(load_class(path), name, None)
    return str(value or "")


def _summary(doc: str) -> str:
    """The first sentence of a class's docstring, without what only a documentation tool reads."""
    paragraph = " ".join(inspect.cleandoc(doc).partition("\n\n")[0].split())
    return re.sub(r"[;,]? see :\w+:`[^`]*`", "", paragraph)
