"""YAML that may come from somebody else: plain values only, of a bounded size."""

from pathlib import Path
from typing import Any

import yaml

from fedleak.errors import BadInput, require

MOST_BYTES = 2**20
"""A settings file is some kilobytes; this bounds what a reader parses."""
DEEPEST = 40
"""Settings nest four or five levels; PyYAML's own loader recurses without a bound."""
MOST_VALUES = 100_000
"""Values once all aliases are written out, so that a few aliases of aliases do not fill memory."""


def read_yaml(path: Path) -> Any:
    """The plain values in a YAML file.

    Args:
        path: the file.

    Raises:
        BadInput: if it is missing, no text, longer than :data:`MOST_BYTES`, or no plain YAML.
    """
    require(path.is_file(), f"Expected a YAML file at `{path}`, found none.")
    try:
        size = path.stat().st_size
        require(
            size <= MOST_BYTES,
            f"Expected at most {MOST_BYTES:,} bytes of YAML in `{path}`, got {size:,}.",
        )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"Expected a readable YAML file, got `{path}`: {error}.") from error
    return parse_yaml(text, f"`{path}`")


def parse_yaml(text: str, where: str) -> Any:
    """The plain values in a YAML text.

    Args:
        text: the text, at most :data:`MOST_BYTES` characters.
        where: what holds it, for messages.

    Raises:
        BadInput: if it is no YAML, names Python objects, nests deeper than :data:`DEEPEST`, holds
            more than :data:`MOST_VALUES` values, or refers to itself.
    """
    require(
        len(text) <= MOST_BYTES,
        f"Expected at most {MOST_BYTES:,} characters of YAML in {where}, got {len(text):,}.",
    )
    try:
        _check_size(text, where)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f" in line {mark.line + 1}"
        raise BadInput(f"Expected YAML in {where}, got a mistake{place}: {problem}.") from error
    except (ValueError, TypeError, OverflowError) as error:
        # Dates such as 2020-13-45, integers of thousands of digits, mappings as keys.
        raise BadInput(f"Expected plain values in {where}, got: {error}.") from error


def _check_size(text: str, where: str) -> None:
    """Count what the text stands for, event by event, before anything is built of it."""
    sizes: dict[str, int] = {}
    # Anchor and number of values of every collection that is open.
    open_: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, 1))
            require(
                len(open_) <= DEEPEST,
                f"Expected at most {DEEPEST} levels of settings in {where}, got more.",
            )
            continue
        if isinstance(event, yaml.AliasEvent):
            inside = event.anchor in [anchor for anchor, _ in open_]
            require(not inside, f"Expected settings in {where}, got YAML that refers to itself.")
            size = sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
            if anchor is not None:
                sizes[anchor] = size
        else:
            continue
        anchor, so_far = open_[-1]
        open_[-1] = anchor, so_far + size
        require(
            so_far + size <= MOST_VALUES,
            f"Expected at most {MOST_VALUES:,} values in {where}, got more.",
        )
