"""A run's folder: what is in it, what has been done, and the results as they come."""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedleak.attacks.base import Reconstruction
from fedleak.config import RunConfig
from fedleak.errors import BadInput
from fedleak.runs.diagnostics import Attacked, Findings, append_findings, repair_findings
from fedleak.runs.folder import Row, RunFolder
from fedleak.runs.scoring import EXTRA_COLUMNS, Scoring
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate

COLUMNS = (
    "round", "client", "sample", "attack", "defense", "model", "dataset", "batch_size",
    "mse", "psnr", "ssim", "success", "noise_mse", "cost", "iterations", "seconds",
)  # fmt: skip
Done = set[Attacked]


class Recorder:
    """Scores reconstructions and appends them to the run's files at once.

    Args:
        folder: the run's folder.
        config: the run's configuration.
        scoring: how its samples are scored.
    """

    def __init__(self, folder: RunFolder, config: RunConfig, scoring: Scoring) -> None:
        self._folder = folder
        self._config = config
        self._scoring = scoring
        self.done = repair_results(folder.results)
        repair_findings(folder.findings, self.done)

    def record(
        self,
        attack: str,
        update: InterceptedUpdate,
        truth: GroundTruth | None,
        reconstruction: Reconstruction,
    ) -> list[Row]:
        """Score one update's reconstruction, append its rows and keep what can be looked at.

        Args:
            attack: the attack's name.
            update: the update that was attacked.
            truth: the client's batch, or none where it is not known; then the scores stay empty.
            reconstruction: what the attack made of it.

        Returns:
            A row for each sample, with the columns of results.csv.
        """
        batch = len(reconstruction.inputs)
        shared = {
            "round": update.round, "client": update.client, "attack": attack,
            "defense": self._config.defense_name,
            "model": update.model, "dataset": self._config.data_name, "batch_size": batch,
            "cost": reconstruction.cost, "iterations": reconstruction.iterations,
            "seconds": reconstruction.seconds / batch,
        }  # fmt: skip
        # The file has these columns whether or not there is a truth.
        shared |= dict.fromkeys(self._scoring.extra_columns(self._config.metrics))
        if truth is None:
            scores: list[Row] = [{"sample": sample, "match": sample} for sample in range(batch)]
        else:
            scores = self._scoring.scores(truth, reconstruction)
        # Before the rows: an attack whose rows are there is not made again.
        found = Findings(update.model, attack, update.round, update.client, reconstruction.findings)
        append_findings(self._folder.findings, found)
        rows: list[Row] = []
        for values in scores:
            position = values.pop("match")
            rows.append(shared | values)
            original = None if truth is None else truth.inputs[values["sample"]]
            path = self._folder.reconstruction(rows[-1], self._scoring.suffix)
            self._scoring.keep(reconstruction.inputs[position], original, path)
        append_rows(self._folder.results, rows)
        self.done.add((update.model, attack, update.round, update.client))
        return rows


def columns_of(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The columns of a results.csv that holds these rows: the usual ones, and what some have."""
    present = {name for row in rows for name in row}
    return (*COLUMNS, *(name for name in EXTRA_COLUMNS if name in present))


def append_rows(path: Path, rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    """Append rows to results.csv and force them to disk.

    Args:
        path: results.csv; a new one gets a header.
        rows: the rows; what they lack stays empty.
        columns: those of a new file; none: as the rows have them. Another file keeps its own.

    Raises:
        ValueError: if a row has a value that the file has no column for.
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
    """The columns of a results.csv: the usual ones, and maybe some of the extra ones.

    Raises:
        BadInput: if the file has others.
    """
    with path.open(newline="", encoding="utf-8") as file:
        found = csv.DictReader(file).fieldnames
    if found is None or tuple(found) != columns_of([dict.fromkeys(found)]):
        raise BadInput(
            f"Expected the columns {', '.join(COLUMNS)} (and some of {', '.join(EXTRA_COLUMNS)}) "
            f"in {path}, got {found}."
        )
    return tuple(found)


def read_rows(path: Path) -> list[Row]:
    """The rows of a results.csv, numbers as numbers and empty cells as none.

    Raises:
        BadInput: if the file has other columns.
    """
    if not path.exists():
        return []
    read_columns(path)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return [{name: _value(name, text) for name, text in row.items()} for row in reader]


def repair_results(path: Path) -> Done:
    """Drop what a killed run left half written, and tell what is done.

    Args:
        path: results.csv, which may be missing.

    Returns:
        (model, attack, round, client) of every update whose rows are complete.
    """
    if not path.exists():
        return set()
    # As bytes: the file may end within a letter.
    written = path.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    if not whole:
        path.unlink()
        return set()
    if whole != written:
        path.write_bytes(whole)
    rows = read_rows(path)
    found = Counter(_key(row) for row in rows)
    done = {_key(row) for row in rows if found[_key(row)] >= row["batch_size"]}
    if any(_key(row) not in done for row in rows):
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        append_rows(part, [row for row in rows if _key(row) in done], read_columns(path))
        part.replace(path)
    return done


def _key(row: Row) -> tuple[str, str, int, int]:
    return str(row["model"]), str(row["attack"]), row["round"], row["client"]


def _value(name: str, text: str) -> Any:
    if name in ("attack", "defense", "model", "dataset"):
        return text
    if text == "":
        return None
    whole = name in ("round", "client", "sample", "batch_size", "success", "iterations")
    return int(text) if whole else float(text)
