"""Read text files of a run's folder, which may be untrusted, within a limit on their size."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from fedleak.errors import BadInput, require

LARGEST_TEXT = 64 * 2**20
"""Largest size of a run's text file in bytes: some 400,000 rows of results.csv."""


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """The text of a file, with its line ends unchanged.

    Args:
        path: the file.
        largest: its largest permitted size in bytes.

    Raises:
        BadInput: if it cannot be read, is larger, is not UTF-8 or contains NUL.
    """
    try:
        size = path.stat().st_size
        require(size <= largest, f"Expected at most {largest:,} bytes in {path}, got {size:,}.")
        return decoded(path.read_bytes(), path)
    except OSError as error:
        raise BadInput(f"Expected a file at {path}, got: {error.strerror}.") from error


def write_whole(path: Path, text: str) -> Path:
    """Write a text file that is whole or not there; a link in its place is replaced, not followed.

    Args:
        path: the file, in an existing folder.
        text: its text; what UTF-8 cannot hold, such as half a surrogate pair, is escaped.

    Returns:
        The path.

    Raises:
        BadInput: if the file cannot be written, as where a folder has its name.
    """
    part = path.with_suffix(".part")
    try:
        part.unlink(missing_ok=True)
        # Fails if somebody puts a link there in between.
        with part.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return part.replace(path)
    except OSError as error:
        if part.is_file():
            part.unlink()
        raise BadInput(f"Expected to write {path}, got: {error.strerror}.") from error


def decoded(content: bytes, path: Path) -> str:
    """Decode the bytes of a file.

    Args:
        content: the bytes.
        path: the file, for the message.

    Raises:
        BadInput: if they are not UTF-8 or contain NUL.
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
    """Parse JSON as its standard defines it: NaN and infinity are refused.

    Args:
        text: what to parse.
        where: the file, and possibly the line, for the message.

    Raises:
        BadInput: if it is not JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = "too many levels" if isinstance(error, RecursionError) else error
        raise BadInput(f"Expected JSON in {where}, got: {reason}.") from error


def is_count(value: Any, least: int = 0) -> bool:
    """Whether a value read from a file is an integer from ``least`` with at most nine digits."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 10**9


def is_number(value: Any) -> bool:
    """Whether a value read from a file is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # An integer may be too large for a float.
    return abs(value) < 1e300 if isinstance(value, int) else math.isfinite(value)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant}, which is not a JSON number")
