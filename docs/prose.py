"""Keeps prose of attributes as it is: napoleon takes what precedes a colon for a type."""

from typing import Any


def connect(app: Any) -> None:
    """Undo what napoleon, whose priority is 500, makes of attributes' docstrings."""
    kept: dict[str, list[str]] = {}

    def before(_app: Any, what: str, name: str, _value: Any, _options: Any, lines: Any) -> None:
        # Where there is a blank line, a section such as Raises may follow.
        if what in ("attribute", "data", "property") and "" not in lines[:-1]:
            kept[name] = list(lines)

    def after(_app: Any, _what: str, name: str, _value: Any, _options: Any, lines: Any) -> None:
        if name in kept:
            lines[:] = kept.pop(name)

    app.connect("autodoc-process-docstring", before, priority=400)
    app.connect("autodoc-process-docstring", after, priority=600)
