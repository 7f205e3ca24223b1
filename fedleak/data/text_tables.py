"""Reading of large numeric text tables in chunks; messages give the line of an invalid row."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from fedleak.errors import BadInput, require

CHUNK_LINES = 500_000  # lines read at once, some tens of megabytes
MAX_LINE_LENGTH = 1_000  # characters


@dataclass(frozen=True)
class Column:
    """A column that is read.

    Args:
        name: its name in the result and in messages.
        position: its position in a row, from 0.
        kind: numpy's name of its dtype, such as ``i8`` or ``f4``.
    """

    name: str
    position: int
    kind: str


@dataclass(frozen=True)
class Layout:
    """The format of a file's rows.

    Args:
        columns: the columns that are read; a row may have more.
        delimiter: the text between two columns.
        header: whether the first line holds the columns' names.
    """

    columns: Sequence[Column]
    delimiter: str
    header: bool = False

    def describe(self) -> str:
        """The format in words, such as ``numbers for userID, artistID, weight between tabs``."""
        names = ", ".join(column.name for column in self.columns)
        between = {"\t": "tabs", ",": "commas"}.get(self.delimiter, f"`{self.delimiter}`")
        return f"numbers for {names} between {between}"


def read_table(path: Path, layout: Layout) -> Iterator[npt.NDArray[Any]]:
    """Read a file in chunks, so that its text is never in memory as a whole.

    Args:
        path: the file, text in UTF-8.
        layout: the format of its rows.

    Yields:
        Structured arrays ``(rows,)`` with a field for each column.

    Raises:
        BadInput: if the file cannot be read, or a row does not match the layout; the message gives
            the line's number.
    """
    # A pipe would be waited for without end.
    require(path.is_file(), f"Expected a file at {path}, found none.")
    try:
        with path.open(encoding="utf-8") as file:
            number = 0
            rows = read_lines(file, path)
            if layout.header:
                next(rows, None)
                number = 1
            while lines := list(islice(rows, CHUNK_LINES)):
                if any(line.strip() for line in lines):
                    yield _parse(path, lines, number, layout)
                number += len(lines)
    except OSError as error:
        raise BadInput(f"Expected a file at {path}, got: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"Expected text in UTF-8 in {path}, got other bytes.") from error


def read_lines(file: TextIO, path: Path) -> Iterator[str]:
    """The lines of a file, with a limit on their length.

    Args:
        file: the open file.
        path: its path, for the message.

    Yields:
        The lines, with their line ends.

    Raises:
        BadInput: if a line is longer than 1,000 characters; the message gives its number.
    """
    number = 0
    while line := file.readline(MAX_LINE_LENGTH + 1):
        number += 1
        require(
            len(line) <= MAX_LINE_LENGTH,
            f"Expected at most {MAX_LINE_LENGTH:,} characters in line {number} of {path}, "
            "got more.",
        )
        yield line


def _parse(path: Path, lines: list[str], before: int, layout: Layout) -> npt.NDArray[Any]:
    try:
        return _to_array(lines, layout)
    except ValueError:
        # Parsing line by line is slow, so it is done only to find the invalid line.
        for number, line in enumerate(lines, start=before + 1):
            try:
                if line.strip():
                    _to_array([line], layout)
            except ValueError:
                raise BadInput(
                    f"Expected {layout.describe()} in line {number} of {path}, got "
                    f"`{line.strip()[:60]}`."
                ) from None
        raise


def _to_array(lines: list[str], layout: Layout) -> npt.NDArray[Any]:
    between = layout.delimiter
    if len(between) > 1:  # numpy splits at one character
        lines = [line.replace(between, "\t") for line in lines]
        between = "\t"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows: npt.NDArray[Any] = np.loadtxt(
            lines,
            dtype=[(column.name, column.kind) for column in layout.columns],
            delimiter=between,
            usecols=[column.position for column in layout.columns],
            comments=None,
            ndmin=1,
        )
    for column in layout.columns:
        if not np.isfinite(rows[column.name]).all():
            raise ValueError(f"{column.name} is not finite")
    return rows


def read_pairs(
    path: Path, layout: Layout, *, above: float | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Read user-item interactions: the first two columns of a table.

    Args:
        path: the file.
        layout: columns of a user, an item and, if ``above`` is given, a value.
        above: keep only rows whose value is larger. If None, all rows are kept.

    Returns:
        Users and items, each int64 ``(rows,)``.

    Raises:
        BadInput: as :func:`read_table`, or if no row is left.
    """
    users, items = [], []
    names = [column.name for column in layout.columns]
    for chunk in read_table(path, layout):
        chosen = chunk if above is None else chunk[chunk[names[2]] > above]
        users.append(chosen[names[0]].astype(np.int64))
        items.append(chosen[names[1]].astype(np.int64))
    require(
        sum(map(len, users)) > 0,
        f"Expected at least one row that counts in {path}, found none.",
    )
    return np.concatenate(users), np.concatenate(items)
