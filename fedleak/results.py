"""A run's folder: what is in it, what has been done, and the results as they come."""

import csv
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fedleak.attacks.base import Reconstruction
from fedleak.config import RunConfig
from fedleak.errors import BadInput, require
from fedleak.findings import Attacked, Findings, append_findings, repair_findings
from fedleak.scoring import EXTRA_COLUMNS, Scoring
from fedleak.updates import GroundTruth, InterceptedUpdate, update_key

COLUMNS = (
    "round", "client", "sample", "attack", "defense", "model", "dataset", "batch_size",
    "mse", "psnr", "ssim", "success", "noise_mse", "cost", "iterations", "seconds",
)  # fmt: skip
MEANS = ("mse", "psnr", "ssim", "success", "seconds")

Status = Literal["running", "interrupted", "failed", "complete"]
Row = dict[str, Any]
Done = set[Attacked]


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.results = path / "results.csv"
        self.findings = path / "findings.jsonl"
        self.summary = path / "summary.json"
        self.figures = path / "figures"
        self.tensorboard = path / "tensorboard"
        self.reconstructions = self.figures / "victims"

    def updates(self, variant: str = "") -> Path:
        """Folder of the updates; ``variant`` is empty or ``baseline``."""
        return self.path / "updates" / variant

    def truth(self, variant: str = "") -> Path:
        """Folder of the ground truth, for the scorer alone."""
        return self.path / "truth" / variant

    def checkpoint(self, variant: str = "") -> Path:
        """Where a federation that has not ended keeps its state; gone once it has."""
        return self.updates(variant) / "unfinished.safetensors"

    def open(self, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready for a run of this configuration.

        Args:
            config: the configuration, which is written to config.yaml.
            resume: whether to go on with what is there.
            overwrite: whether to delete what is there.

        Raises:
            BadInput: if something is there and neither is allowed, if it is no run's folder, or
                if it is one of another configuration.
        """
        require(
            not (resume and overwrite),
            "Expected one of `--resume` and `--overwrite`, got both.",
        )
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            require(
                self.config.is_file(),
                f"Expected the folder of a run or nothing at {self.path}, found something else: "
                "choose another `--output`.",
            )
            require(
                resume or overwrite,
                f"Expected no run at {self.path}, found one: go on with it by `--resume`, replace "
                "it by `--overwrite`, or choose another `--output`.",
            )
            if resume:
                found = RunConfig.load(self.config).hash
                require(
                    found == config.hash,
                    f"Expected the configuration of {self.config} to resume it, got another one: "
                    f"repeat its settings (`--config {self.config}`) or `--overwrite`.",
                )
            else:
                shutil.rmtree(self.path)
        for variant in config.variants:
            self.updates(variant).mkdir(parents=True, exist_ok=True)
            self.truth(variant).mkdir(parents=True, exist_ok=True)
        self.reconstructions.mkdir(parents=True, exist_ok=True)
        self.tensorboard.mkdir(parents=True, exist_ok=True)
        config.save(self.config)

    def reconstruction(self, row: Row, suffix: str = ".png") -> Path:
        """Path of what one reconstructed sample looks like: a picture, or a table of items."""
        # A sweep's rows are text.
        key = update_key(int(row["round"]), int(row["client"]))
        name = f"{row['model']}-{row['attack']}-{key}-{row['sample']}{suffix}"
        return self.reconstructions / name

    def read_truth(self, variant: str, round_: int, client: int) -> GroundTruth | None:
        """The truth behind an update; none where it is not known, as in a deployment."""
        path = self.truth(variant) / f"{update_key(round_, client)}.safetensors"
        return GroundTruth.load(path) if path.exists() else None


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


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table of means: an entry for every attack on every model, in the order of the rows.

    Args:
        rows: rows of results.csv.

    Returns:
        Entries with attack, defense, model, dataset, n (samples scored), and the means of mse,
        psnr, ssim, success (as asr) and seconds, and of the extra columns that rows have; none
        where nothing was scored.
    """
    means = (*MEANS, *columns_of(rows)[len(COLUMNS) :])
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = tuple(str(row[name]) for name in ("attack", "defense", "model", "dataset"))
        groups.setdefault(key, []).append(row)
    entries = []
    for (attack, defense, model, dataset), members in groups.items():
        entry: dict[str, Any] = {
            "attack": attack, "defense": defense, "model": model, "dataset": dataset,
            "n": len(members),
        }  # fmt: skip
        for name in means:
            values = [row[name] for row in members if row.get(name) not in (None, "")]
            entry[name if name != "success" else "asr"] = _mean(values)
        entries.append(entry)
    return entries


def summarise_rounds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table of means round by round, since a trained model leaks otherwise than an untrained.

    Args:
        rows: rows of results.csv.

    Returns:
        The entries of :func:`summarise`, each with its round, attack by attack; none if only one
        round was attacked.
    """
    rounds = sorted({row["round"] for row in rows})
    if len(rounds) < 2:
        return []
    entries = [
        {"round": round_} | entry
        for round_ in rounds
        for entry in summarise([row for row in rows if row["round"] == round_])
    ]
    order = [(entry["attack"], entry["model"]) for entry in summarise(rows)]
    return sorted(entries, key=lambda entry: order.index((entry["attack"], entry["model"])))


def write_summary(
    folder: RunFolder, config: RunConfig, status: Status, federation: dict[str, Any]
) -> dict[str, Any]:
    """Write summary.json from results.csv.

    Args:
        folder: the run's folder.
        config: its configuration.
        status: how far the run has come.
        federation: rounds, clients, failures, accuracy.

    Returns:
        What was written.
    """
    summary = {
        "status": status,
        "config_hash": config.hash,
        "attacks": summarise(read_rows(folder.results)),
        "federation": federation,
    }
    part = folder.summary.with_suffix(".part")
    part.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    part.replace(folder.summary)
    return summary


def _mean(values: Sequence[float]) -> float | None:
    """The mean; none for no values, since JSON knows neither NaN nor infinity."""
    mean = sum(values) / len(values) if values else math.nan
    return mean if math.isfinite(mean) else None


def _key(row: Row) -> tuple[str, str, int, int]:
    return str(row["model"]), str(row["attack"]), row["round"], row["client"]


def _value(name: str, text: str) -> Any:
    if name in ("attack", "defense", "model", "dataset"):
        return text
    if text == "":
        return None
    whole = name in ("round", "client", "sample", "batch_size", "success", "iterations")
    return int(text) if whole else float(text)
