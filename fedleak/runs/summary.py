"""``summary.json``: the means of a run's results, and how far the run has come."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fedleak.config import RunConfig
from fedleak.data import PrivateData
from fedleak.errors import BadInput
from fedleak.runs.folder import Row, RunFolder
from fedleak.runs.results import COLUMNS, columns_of, read_rows

MEANS = ("mse", "psnr", "ssim", "success", "seconds")
Status = Literal["running", "interrupted", "failed", "complete"]


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


def read_summary(path: Path) -> dict[str, Any]:
    """What :func:`write_summary` wrote.

    Args:
        path: summary.json.

    Raises:
        BadInput: if it is missing or damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["status"], found["attacks"], found["federation"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInput(f"Expected a run's summary in {path}, got: {error}.") from error
    return found  # type: ignore[no-any-return]


def data_facts(config: RunConfig, data: PrivateData) -> dict[str, Any]:
    """What a reader of a run has to know of its data set, so that nobody has to load it again.

    Args:
        config: the run's configuration.
        data: its data set.

    Returns:
        Name, kind, input_shape, classes, and mean and std of each channel on the scale [0, 1].
    """
    return {
        "name": config.data_name,
        "kind": data.kind,
        "input_shape": list(data.input_shape),
        "classes": data.num_classes,
        "mean": list(data.mean),
        "std": list(data.std),
    }


def write_summary(
    folder: RunFolder,
    config: RunConfig,
    status: Status,
    federation: dict[str, Any],
    data: dict[str, Any],
) -> dict[str, Any]:
    """Write summary.json from results.csv.

    Args:
        folder: the run's folder.
        config: its configuration.
        status: how far the run has come.
        federation: rounds, clients, failures, accuracy.
        data: see :func:`data_facts`.

    Returns:
        What was written.
    """
    summary = {
        "status": status,
        "config_hash": config.hash,
        "data": data,
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
