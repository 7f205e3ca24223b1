"""``results.csv`` of an audit: a row for each reconstructed sample, appended when it is scored."""

import csv
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from fedleak.audit.truth_scores import Score
from fedleak.audit.verdict import QUESTIONS, RUNGS
from fedleak.errors import BadInput, require
from fedleak.runs.text_files import LARGEST_TEXT, decoded
from fedleak.updates.files import check_name, short

CANARY = "canary"
KEY = re.compile(r"[\w.-]{1,100}", re.ASCII)


@dataclass(frozen=True)
class SampleRow:
    """A reconstructed sample.

    Args:
        rung: what the server does, see :data:`fedleak.audit.verdict.RUNGS`.
        question: the question, or ``canary``.
        update: the update's key, such as ``r0001-c0003``, or ``canary``.
        sample: position in the client's data, from 0.
        samples: number of the update's samples.
        attack: the attack's name.
        measure: what ``value`` and ``guess`` are.
        value: how well it was reconstructed.
        guess: the same of a guess without the update.
        explained: share of the update that the reconstruction explains; NaN if not known.
        supported: 1 if the update supports the reconstruction, else 0.
    """

    rung: int
    question: str
    update: str
    sample: int
    samples: int
    attack: str
    measure: str
    value: float
    guess: float
    explained: float
    supported: int

    @property
    def owner(self) -> tuple[int, str, str]:
        """Whose sample it is: rung, question and update."""
        return self.rung, self.question, self.update


COLUMNS = tuple(item.name for item in fields(SampleRow))


def rows_of(score: Score, rung: int, question: str, measure: str) -> list[SampleRow]:
    """The rows of an update's score.

    Args:
        score: the score.
        rung: the rung of the question.
        question: the question, or ``canary``.
        measure: what the numbers are.
    """
    return [
        SampleRow(
            rung, question, score.key, sample, len(score.values), score.attack, measure, value,
            guess, score.explained, int(score.supported),
        )
        for sample, (value, guess) in enumerate(zip(score.values, score.guesses, strict=True))
    ]  # fmt: skip


def scores_of(rows: Sequence[SampleRow], rung: int, question: str) -> list[Score]:
    """The scores that rows were made of, in the order of the rows.

    Args:
        rows: rows of results.csv, those of an update complete.
        rung: the rung of the question.
        question: whose scores.
    """
    groups: dict[str, list[SampleRow]] = {}
    for row in rows:
        if (row.rung, row.question) == (rung, question):
            groups.setdefault(row.update, []).append(row)
    return [
        Score.of(
            key, group[0].attack, [row.value for row in group], [row.guess for row in group],
            group[0].explained, bool(group[0].supported),
        )
        for key, group in groups.items()
    ]  # fmt: skip


def append_rows(path: Path, rows: Sequence[SampleRow]) -> None:
    """Append rows to results.csv and flush them to disk.

    Args:
        path: results.csv; a new file gets a header.
        rows: the rows.
    """
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerows([_cell(getattr(row, name)) for name in COLUMNS] for row in rows)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[SampleRow]:
    """The rows of a results.csv; an incomplete last line, as of a killed audit, is left out.

    Args:
        path: results.csv. If it does not exist, there are no rows.

    Raises:
        BadInput: if the file is too large, has other columns, or a cell is not valid.
    """
    if not path.is_file():
        return []
    size = path.stat().st_size
    require(
        size <= LARGEST_TEXT, f"Expected at most {LARGEST_TEXT:,} bytes in {path}, got {size:,}."
    )
    written = path.read_bytes()
    text = decoded(written[: written.rfind(b"\n") + 1], path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[SampleRow] = []
    try:
        for number, cells in enumerate(reader):
            if number:
                rows.append(_row(cells, f"line {reader.line_num} of {path}"))
                continue
            require(
                tuple(cells) == COLUMNS,
                f"Expected the columns {', '.join(COLUMNS)} in {path}, got {short(cells, 200)}.",
            )
    except csv.Error as error:
        raise BadInput(f"Expected a table of results in {path}, got: {error}.") from error
    return rows


def repair_rows(path: Path) -> list[SampleRow]:
    """Drop the rows of updates that a killed audit left incomplete.

    Args:
        path: results.csv, which need not exist.

    Returns:
        The rows that are left.

    Raises:
        BadInput: see :func:`read_rows`; the file is then left unchanged.
    """
    rows = read_rows(path)
    counts: dict[tuple[int, str, str], int] = {}
    for row in rows:
        counts[row.owner] = counts.get(row.owner, 0) + 1
    whole = [row for row in rows if counts[row.owner] == row.samples]
    if path.is_file():
        _write(path, whole)
    return whole


def drop_rows(path: Path, question: str) -> None:
    """Drop the rows of a question, which is asked again.

    Args:
        path: results.csv, which need not exist.
        question: the question, or ``canary``.
    """
    rows = read_rows(path)
    if any(row.question == question for row in rows):
        _write(path, [row for row in rows if row.question != question])


def _write(path: Path, rows: Sequence[SampleRow]) -> None:
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    append_rows(part, rows)
    part.replace(path)


def _cell(value: float | str) -> float | str:
    return "" if isinstance(value, float) and math.isnan(value) else value


def _row(cells: Sequence[str], where: str) -> SampleRow:
    require(
        len(cells) == len(COLUMNS),
        f"Expected {len(COLUMNS)} cells in {where}, got {len(cells)}.",
    )
    given = dict(zip(COLUMNS, cells, strict=True))
    try:
        row = SampleRow(
            rung=int(given["rung"]), question=given["question"], update=given["update"],
            sample=int(given["sample"]), samples=int(given["samples"]),
            attack=check_name(f"the attack in {where}", given["attack"]),
            measure=given["measure"], value=_number(given["value"]),
            guess=_number(given["guess"]), explained=_number(given["explained"]),
            supported=int(given["supported"]),
        )  # fmt: skip
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(f"Expected numbers in {where}, got: {error}.") from error
    require(
        row.rung in RUNGS
        and row.question in (CANARY, *QUESTIONS)
        and KEY.fullmatch(row.update) is not None
        and 0 <= row.sample < row.samples < 10**9
        and row.supported in (0, 1)
        and row.measure.isprintable(),
        f"Expected a reconstructed sample of an audit in {where}, got {short(cells, 200)}.",
    )
    return row


def _number(text: str) -> float:
    return float(text) if text else math.nan
