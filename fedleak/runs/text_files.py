"""Text files of a run's folder, which may come from somebody else: read whole, up to a size."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from fedleak.errors import BadInput, require

LARGEST_TEXT = 64 * 2**20
"""Bytes of a text file of a run, at most: some 400,000 rows of results.csv."""


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """The text of a file, line ends as they are.

    Args:
        path: the file.
        largest: bytes that it may have.

    Raises:
        BadInput: if it cannot be read, is larger, is not UTF-8 or holds NUL.
    """
    try:
        size = path.stat().st_size
        require(size <= largest, f"Expected at most {largest:,} bytes in {path}, got {size:,}.")
        return decoded(path.read_bytes(), path)
    except OSError as error:
        raise BadInput(f"Expected a file at {path}, got: {error.strerror}.") from error


def decoded(content: bytes, path: Path) -> str:
    """The bytes of a file as text.

    Args:
        content: the bytes.
        path: the file, for the message.

    Raises:
        BadInput: if they are not UTF-8 or hold NUL.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"Expected text in UTF-8 in {path}, got other bytes at {error.start:,}."
        ) from error
    require("\0" not in text, f"Expected text in {path}, got a NUL character in it.")
    return text


def parse_json(text: str, where: str) -> Any:
    """JSON as its standard has it: NaN and infinity are refused.

    Args:
        text: what to parse.
        where: the file, and maybe the line, for the message.

    Raises:
        BadInput: if it is no JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = "too many levels" if isinstance(error, RecursionError) else error
        raise BadInput(f"Expected JSON in {where}, got: {reason}.") from error


def is_count(value: Any, least: int = 0) -> bool:
    """Whether a value of a file is a whole number of at most nine digits."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 10**9


def is_number(value: Any) -> bool:
    """Whether a value of a file is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # A whole number may be too large for a float.
    return abs(value) < 1e300 if isinstance(value, int) else math.isfinite(value)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant}, which is no number of JSON")
