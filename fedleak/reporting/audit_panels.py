"""An audit's reconstructed samples beside the true ones and a guess, read from its folder."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedleak.audit.folder import AuditFolder
from fedleak.audit.results import CANARY, SampleRow
from fedleak.audit.samples import COLUMNS
from fedleak.data.picture_files import open_image
from fedleak.errors import BadInput, require
from fedleak.reporting.panels import FORMATS, Panel, read_picture
from fedleak.runs.text_files import read_text
from fedleak.updates.files import short

GUESS, FOUND = "guess without the update", "reconstruction"
KEY = re.compile(r"r(\d{4,9})-c(\d{4,9})", re.ASCII)
SUM = re.compile(r"r(\d{4,9})-sum", re.ASCII)
MAX_SAMPLES = 64  # with pictures or tables
MAX_PIXELS = 2**27  # of all their pictures
MAX_ENTRIES = 100  # of a table
LARGEST_TABLE = 2**20  # in bytes


@dataclass(frozen=True)
class SampleTable:
    """A sample that is no picture, entry by entry.

    Args:
        row: its row of results.csv.
        label: whose sample it is.
        entries: entry, true value, guess and reconstruction; the first 100.
        entry_count: number of all its entries in the file.
    """

    row: SampleRow
    label: str
    entries: list[list[str]]
    entry_count: int


def label_of(row: SampleRow) -> str:
    """Whose sample a row is of, such as ``client 3, round 1, sample 2``."""
    if row.question == CANARY:
        return "the audit's own client"
    match = KEY.fullmatch(row.update)
    total = SUM.fullmatch(row.update)
    whose = f"client {int(match[2])}, round {int(match[1])}" if match else row.update
    whose = f"sum of round {int(total[1])}" if total else whose
    return f"{whose}, sample {row.sample + 1}" if row.samples > 1 else whose


def measure_name(rows: Sequence[SampleRow]) -> str:
    """The measure of rows in a few words, such as ``SSIM``; empty without rows."""
    return re.split(" of images| of a sample|,", rows[0].measure)[0] if rows else ""


def audit_panels(folder: AuditFolder, rows: Sequence[SampleRow]) -> list[Panel]:
    """The samples of rows that have pictures, at most 64.

    Args:
        folder: the audit's folder.
        rows: rows of its results.csv.

    Raises:
        BadInput: if a picture is damaged, or they are too large together.
    """
    panels, pixels = [], 0
    for row in rows[:MAX_SAMPLES]:
        paths = [folder.sample(row.update, row.sample, w) for w in ("true", "guess", "found")]
        if not all(path.is_file() for path in paths):
            continue
        for path in paths:
            with open_image(path, FORMATS) as file:
                pixels += file.width * file.height
        require(
            pixels <= MAX_PIXELS,
            f"Expected pictures of at most {MAX_PIXELS:,} pixels in total, got more up to "
            f"{paths[-1]}.",
        )
        true, guess, found = (read_picture(path) for path in paths)
        panels.append(
            Panel(
                0, 0, row.sample, true, {GUESS: (guess, row.guess), FOUND: (found, row.value)},
                set() if row.supported else {FOUND}, label_of(row),
            )
        )  # fmt: skip
    return panels


def audit_tables(folder: AuditFolder, rows: Sequence[SampleRow]) -> list[SampleTable]:
    """The samples of rows that have tables, at most 64.

    Args:
        folder: the audit's folder.
        rows: rows of its results.csv.

    Raises:
        BadInput: if a table is damaged.
    """
    tables = []
    for row in rows[:MAX_SAMPLES]:
        path = folder.sample(row.update, row.sample, "", ".csv")
        if path.is_file():
            entries = _read_table(path)
            tables.append(SampleTable(row, label_of(row), entries[:MAX_ENTRIES], len(entries)))
    return tables


def _read_table(path: Path) -> list[list[str]]:
    reader = csv.reader(io.StringIO(read_text(path, LARGEST_TABLE), newline=""), strict=True)
    try:
        columns, *rows = list(reader) or [[]]
    except csv.Error as error:
        raise BadInput(f"Expected a table of a sample in {path}, got: {error}.") from error
    require(
        tuple(columns) == COLUMNS and all(len(row) == len(COLUMNS) for row in rows),
        f"Expected rows of {', '.join(COLUMNS)} in {path}, got rows of {short(columns)}.",
    )
    return rows
