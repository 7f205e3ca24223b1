"""Reading of untrusted YAML: plain values only, of a bounded size."""

from pathlib import Path
from typing import Any

import yaml

from fedleak.errors import BadInput, require

MAX_BYTES = 2**20
"""The maximum length of a text; a settings file has some kilobytes."""
MAX_DEPTH = 40
"""The maximum nesting; settings have four or five levels, and PyYAML recurses without a limit."""
MAX_VALUES = 100_000
"""The maximum number of values with aliases expanded: nested aliases grow exponentially."""


MAX_TEXT = 10_000
"""Characters of one text or number."""


def read_yaml(path: Path) -> Any:
    """The plain values in a YAML file.

    Args:
        path: the file.

    Raises:
        BadInput: if it is missing, not text, longer than :data:`MAX_BYTES`, or invalid; see
            :func:`parse_yaml`.
    """
    require(path.is_file(), f"Expected a YAML file at `{path}`, found none.")
    try:
        size = path.stat().st_size
        require(
            size <= MAX_BYTES,
            f"Expected at most {MAX_BYTES:,} bytes of YAML in `{path}`, got {size:,}.",
        )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"Expected a readable YAML file, got `{path}`: {error}.") from error
    return parse_yaml(text, f"`{path}`")


def parse_yaml(text: str, where: str) -> Any:
    """The plain values in a YAML text.

    Args:
        text: the text, at most :data:`MAX_BYTES` characters.
        where: the text's source, for messages.

    Raises:
        BadInput: if it is not valid YAML, contains Python objects, more than :data:`MAX_DEPTH`
            levels or more than :data:`MAX_VALUES` values, or refers to itself.
    """
    require(
        len(text) <= MAX_BYTES,
        f"Expected at most {MAX_BYTES:,} characters of YAML in {where}, got {len(text):,}.",
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
    """Check depth and number of values from the parser's events, before any object is built."""
    sizes: dict[str, int] = {}
    # Anchor and number of values of every collection that has not ended yet.
    open_: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, 1))
            require(
                len(open_) <= MAX_DEPTH,
                f"Expected at most {MAX_DEPTH} levels of settings in {where}, got more.",
            )
            continue
        if isinstance(event, yaml.AliasEvent):
            inside = event.anchor in [anchor for anchor, _ in open_]
            require(not inside, f"Expected settings in {where}, got YAML that refers to itself.")
            size = sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            # PyYAML reads a number in the base 60 in quadratic time.
            require(
                len(event.value) <= MAX_TEXT,
                f"Expected texts of at most {MAX_TEXT:,} characters in {where}, got one of "
                f"{len(event.value):,}.",
            )
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
            so_far + size <= MAX_VALUES,
            f"Expected at most {MAX_VALUES:,} values in {where}, got more.",
        )
