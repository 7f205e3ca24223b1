"""``results.csv``: a row for each reconstructed sample, appended as soon as it is scored."""

import csv
import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedleak.attacks.base import Reconstruction
from fedleak.attacks.explained import SUPPORTED_FROM
from fedleak.config import RunConfig
from fedleak.errors import BadInput, require
from fedleak.runs.diagnostics import AttackKey, Diagnostics, append_diagnostics, repair_diagnostics
from fedleak.runs.folder import Row, RunFolder
from fedleak.runs.readings import as_reconstruction
from fedleak.runs.scoring import (
    CERTIFIED,
    COSINE,
    EXPLAINED,
    EXTRA_COLUMNS,
    LABELS,
    SERVER_COLUMNS,
    Scores,
    Scoring,
)
from fedleak.runs.text_files import LARGEST_TEXT, decoded, read_text
from fedleak.servers.base import Reading
from fedleak.updates.files import check_name, short
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate

COLUMNS = (
    "round", "client", "sample", "attack", "defense", "model", "dataset", "batch_size",
    "mse", "psnr", "ssim", "success", "noise_mse", "cost", "iterations", "seconds",
)  # fmt: skip
COUNTS = {"round": 1, "client": 0, "sample": 0, "batch_size": 1, "success": 0, "iterations": 0}
"""Column of integers -> its smallest valid value."""
RANGES = {
    "mse": (0, math.inf), "psnr": (-math.inf, math.inf), "ssim": (-1, 1),
    "noise_mse": (0, math.inf), "cost": (-math.inf, math.inf), "seconds": (0, math.inf),
    "lpips": (0, math.inf), "precision": (0, 1), "recall": (0, 1), "f1": (0, 1),
    "token_accuracy": (0, 1), "right": (0, 1), "right_of_guess": (0, 1), "error": (0, math.inf),
    "error_of_guess": (0, math.inf), "exact": (0, 1), LABELS: (0, 1), EXPLAINED: (0, 1),
    CERTIFIED: (0, 1), COSINE: (-1, 1),
}  # fmt: skip
"""Column of other numbers -> its smallest and largest valid value."""
REQUIRED = ("round", "client", "sample", "batch_size")
"""Columns without empty cells."""
FINITE = (
    "seconds", "precision", "recall", "f1", "token_accuracy", "right", "right_of_guess", "exact",
    LABELS, EXPLAINED, CERTIFIED, COSINE,
)  # fmt: skip
"""Columns without NaN or infinity; the other scores have them for diverged reconstructions."""
TOLERANCE = 1e-6
"""How far rounding may carry a value beyond its range."""
_DIGITS = re.compile(r"\d{1,9}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
Done = set[AttackKey]


class Recorder:
    """Scores reconstructions and appends their rows to the run's files immediately.

    Args:
        folder: the run's folder.
        config: the run's configuration.
        scoring: how its samples are scored.

    Raises:
        BadInput: if results.csv of an earlier part of the run is damaged.
    """

    def __init__(self, folder: RunFolder, config: RunConfig, scoring: Scoring) -> None:
        self._folder = folder
        self._config = config
        self._scoring = scoring
        self.done = repair_results(folder.results)
        repair_diagnostics(folder.diagnostics, self.done)

    def record(
        self,
        attack: str,
        update: InterceptedUpdate,
        truth: GroundTruth | None,
        reconstruction: Reconstruction,
    ) -> list[Row]:
        """Score one update's reconstruction, append its rows and save the samples as files.

        Args:
            attack: the attack's name.
            update: the update that was attacked.
            truth: the client's batch. If None, the scores stay empty.
            reconstruction: the attack's result.

        Returns:
            A row for each sample, with the columns of results.csv.
        """
        batch = len(reconstruction.inputs)
        shared = self._shared(attack, update, reconstruction)
        recovered = self._config.victims.labels != "known" and self._scoring.has_classes
        if truth is None:
            scores: list[Row] = [{"sample": sample, "match": sample} for sample in range(batch)]
        else:
            scores = self._scoring.scores(truth, reconstruction)
        for values in scores:
            position = values["match"]
            if truth is not None and recovered and not truth.labels.is_floating_point():
                right = truth.labels[values["sample"]] == reconstruction.labels[position]
                values[LABELS] = float(right.double().mean())
            if not reconstruction.supported and values.get("success"):
                # A score that is high by chance is no leak.
                values["success"] = 0
        return self._keep(attack, update, truth, reconstruction, shared, scores)

    def record_reading(
        self,
        server: str,
        update: InterceptedUpdate,
        truth: GroundTruth | None,
        reading: Reading,
        scores: list[Scores],
        seconds: float,
    ) -> list[Row]:
        """Append a row for each sample that a malicious server has read, and save them as files.

        Args:
            server: the server's name.
            update: the last of the updates that were read.
            truth: the client's samples. If None, the scores are empty.
            reading: what was read.
            scores: see :func:`fedleak.runs.readings.score_reading`.
            seconds: time that the reading took.

        Returns:
            The rows.
        """
        found = as_reconstruction(reading, seconds)
        shared = self._shared(server, update, found) | {"batch_size": len(scores)}
        return self._keep(server, update, truth, found, shared, scores)

    def _shared(
        self, attack: str, update: InterceptedUpdate, reconstruction: Reconstruction
    ) -> dict[str, Any]:
        """The values that all rows of a reconstruction have."""
        batch = len(reconstruction.inputs)
        shared: dict[str, Any] = {
            "round": update.round, "client": update.client, "attack": attack,
            "defense": self._config.defense_name,
            "model": update.model, "dataset": self._config.data_name, "batch_size": batch,
            "cost": reconstruction.cost, "iterations": reconstruction.iterations,
            "seconds": reconstruction.seconds / max(1, batch),
        }  # fmt: skip
        # The file has these columns with or without ground truth.
        shared |= dict.fromkeys(self._scoring.extra_columns(self._config.metrics))
        explained = reconstruction.explained
        shared[EXPLAINED] = None if math.isnan(explained) else explained
        # None where the labels were not recovered: the threat model gives them, or there are none.
        if self._scoring.has_classes:
            shared[LABELS] = None
        if self._config.server is not None:
            shared |= dict.fromkeys(SERVER_COLUMNS)
        return shared

    def _keep(
        self,
        attack: str,
        update: InterceptedUpdate,
        truth: GroundTruth | None,
        reconstruction: Reconstruction,
        shared: dict[str, Any],
        scores: list[Scores],
    ) -> list[Row]:
        """Write the rows and the samples of a reconstruction, and what it says of itself."""
        # Before the rows: an attack whose rows are complete is not repeated.
        append_diagnostics(
            self._folder.diagnostics,
            Diagnostics(update.model, attack, update.round, update.client, reconstruction.findings),
        )
        rows: list[Row] = []
        for values in scores:
            position = values.pop("match")
            rows.append(shared | values)
            original = None if truth is None else truth.inputs[values["sample"]]
            path = self._folder.reconstruction(rows[-1], self._scoring.suffix)
            self._scoring.keep(reconstruction.inputs[position], original, path)
        columns = read_columns(self._folder.results) if self._folder.results.exists() else None
        if columns is not None:
            # A run of an earlier version is resumed with the columns that it has.
            rows = [
                {n: v for n, v in row.items() if n in columns or n not in (LABELS, EXPLAINED)}
                for row in rows
            ]
        if rows:
            append_rows(self._folder.results, rows)
        self.done.add((update.model, attack, update.round, update.client))
        return rows


def is_unsupported(row: Mapping[str, Any]) -> bool:
    """Whether a row's reconstruction explains too little of the update to be evidence of anything.

    Args:
        row: a row of results.csv; without a share, as in earlier versions, it is not.
    """
    share = row.get(EXPLAINED)
    return share is not None and share < SUPPORTED_FROM


def columns_of(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The columns of a results.csv with these rows: the standard ones and the extra ones in use."""
    present = {name for row in rows for name in row}
    return (*COLUMNS, *(name for name in EXTRA_COLUMNS if name in present))


def append_rows(path: Path, rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    """Append rows to results.csv and flush them to disk.

    Args:
        path: results.csv; a new file gets a header.
        rows: the rows; missing values stay empty.
        columns: the columns of a new file. If None, those of the rows. An existing file keeps its
            columns.

    Raises:
        BadInput: if an existing file has other columns than those of results.csv.
        ValueError: if a row has a value for which the file has no column.
    """
    new = not path.exists()
    columns = (columns or columns_of(rows)) if new else read_columns(path)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())


def read_columns(path: Path) -> tuple[str, ...]:
    """The columns of a results.csv: the standard ones, possibly followed by extra ones.

    Raises:
        BadInput: if the file has other columns.
    """
    with path.open("rb") as file:
        line = file.readline(LARGEST_TEXT)
    return _columns(line.decode("utf-8", errors="replace"), path)


def _columns(line: str, path: Path) -> tuple[str, ...]:
    found = tuple(line.rstrip("\r\n").split(","))
    if found != columns_of([dict.fromkeys(found)]):
        raise BadInput(
            f"Expected the columns {', '.join(COLUMNS)} (and some of {', '.join(EXTRA_COLUMNS)}) "
            f"in {path}, got {short(line, 200)}."
        )
    return found


def read_rows(path: Path) -> list[Row]:
    """The rows of a results.csv, with numbers converted and empty cells as None.

    Args:
        path: results.csv. If it does not exist, there are no rows.

    Raises:
        BadInput: if the file is not text, has other columns, or a cell is not valid in its column;
            the message names the line.
    """
    return parse_rows(read_text(path), path) if path.exists() else []


def parse_rows(text: str, path: Path) -> list[Row]:
    """The rows in the text of a results.csv.

    Args:
        text: the text, including the header.
        path: the file, for messages.

    Raises:
        BadInput: as :func:`read_rows`.
    """
    lines = io.StringIO(text, newline="")
    columns = _columns(lines.readline(), path)
    reader, rows = csv.reader(lines, strict=True), list[Row]()
    try:
        for cells in reader:
            where = f"line {reader.line_num + 1} of {path}"
            require(
                len(cells) == len(columns),
                f"Expected {len(columns)} cells in {where}, got {len(cells)}.",
            )
            rows.append({n: _value(n, cell, where) for n, cell in zip(columns, cells, strict=True)})
    except csv.Error as error:
        raise BadInput(
            f"Expected a table of results in {path}, got: {error} (line {reader.line_num + 1})."
        ) from error
    return rows


def repair_results(path: Path) -> Done:
    """Drop incomplete rows of a killed run and return the attacks that are complete.

    Args:
        path: results.csv, which may be missing.

    Returns:
        (model, attack, round, client) of every update whose rows are complete.

    Raises:
        BadInput: if a line other than the last one is damaged; the file is then left unchanged.
    """
    if not path.exists():
        return set()
    size = path.stat().st_size
    require(
        size <= LARGEST_TEXT, f"Expected at most {LARGEST_TEXT:,} bytes in {path}, got {size:,}."
    )
    # As bytes: the file may end within a UTF-8 sequence.
    written = path.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    if not whole:
        path.unlink()
        return set()
    # Parsed before anything is changed: a file that is damaged elsewhere stays as it is.
    rows = parse_rows(decoded(whole, path), path)
    if whole != written:
        path.write_bytes(whole)
    found = Counter(_key(row) for row in rows)
    done = {_key(row) for row in rows if found[_key(row)] >= row["batch_size"]}
    if any(_key(row) not in done for row in rows):
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        append_rows(part, [row for row in rows if _key(row) in done], read_columns(path))
        part.replace(path)
    return done


def _key(row: Row) -> AttackKey:
    return str(row["model"]), str(row["attack"]), row["round"], row["client"]


def _value(name: str, text: str, where: str) -> Any:
    if name in ("attack", "model"):
        return check_name(f"the {name} in {where}", text)
    if name in ("defense", "dataset"):
        require(
            not _CONTROL.search(text),
            f"Expected text for {name} in {where}, got control characters: {short(text)}.",
        )
        return text
    if text == "" and name not in REQUIRED:
        return None
    value = _whole(name, text) if name in COUNTS else _number(name, text)
    require(value is not None, f"Expected {_described(name)} in {where}, got {short(text)}.")
    return value


def _whole(name: str, text: str) -> int | None:
    if not _DIGITS.fullmatch(text):
        return None
    value = int(text)
    return value if value >= COUNTS[name] and not (name == "success" and value > 1) else None


def _number(name: str, text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    if not math.isfinite(value) and name in FINITE:
        return None
    low, high = RANGES[name]
    outside = value < low - TOLERANCE or value > high + TOLERANCE
    return None if outside else value


def _described(name: str) -> str:
    if name == "success":
        return "0 or 1 for success"
    if name in COUNTS:
        return f"a whole number from {COUNTS[name]} for {name}"
    low, high = RANGES[name]
    if math.isfinite(high):
        return f"a number from {low:g} to {high:g} for {name}"
    return f"a number{'' if math.isinf(low) else f' from {low:g}'} for {name}"
