"""Which federations can be attacked how: a row for each optimiser, mode, loss and kind of sample.

    python experiments/federations/measure.py --output experiments/federations/results

It appends to results.csv, a row for each victim, and skips what is there already, so that it can be
interrupted; summary.csv has the means that docs/explanation/federations.md shows. The guess beside
each score is made without the update: the mean of all samples that are not a victim's.
"""

import argparse
import csv
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedleak import BadInput, GroundTruth, Reconstruction, score_images

# Run as a script or imported by a test, the module beside this one is the same.
sys.path.insert(0, str(Path(__file__).parent))
from settings import SETTINGS, Setting, Victim

COLUMNS = (
    "group", "setting", "attack", "seed", "metric", "score", "guess", "explained", "labels",
    "findings", "seconds",
)  # fmt: skip
SUMMARY = (
    "group", "setting", "attack", "n", "metric", "score", "spread", "guess", "explained", "labels",
    "finding",
)  # fmt: skip


def score(metric: str, victim: Victim, inputs: Tensor) -> float:
    """The score of a reconstruction or of a guess.

    Args:
        metric: ``SSIM`` (mean of the batch), ``relative error`` or ``tokens`` (share of a batch's
            tokens that are right).
        victim: has the true inputs.
        inputs: what is scored, of the same shape.
    """
    truth = victim.inputs
    if metric == "SSIM":
        labels = torch.zeros(len(truth), dtype=torch.long)
        scores = score_images(
            GroundTruth(truth, labels),
            Reconstruction(inputs, labels),
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
        )
        return statistics.fmean(one.ssim for one in scores)
    if metric == "tokens":
        return float((inputs == truth).double().mean())
    return float((inputs - truth).norm() / truth.norm())


def measure(setting: Setting, seed: int) -> dict[str, Any]:
    """Make one victim, attack it and score what comes out.

    Args:
        setting: the row.
        seed: number of the victim, from 0.
    """
    victim, attack = setting.make(seed), setting.attack()
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {
        "group": setting.group, "setting": setting.name, "attack": attack.name, "seed": seed,
        "metric": setting.metric, "guess": f"{score(setting.metric, victim, victim.guess):.4g}",
    }  # fmt: skip
    try:
        (found,) = attack([victim.update], victim.knowledge, seed=seed)
    except BadInput as refusal:
        return row | {"findings": f"refused: {refusal}"}
    known = victim.knowledge.labels is not None or victim.labels is None
    # Targets that are numbers are not right or wrong.
    if not known and not victim.labels.is_floating_point():
        same = victim.labels.sort().values == found.labels.sort().values
        row["labels"] = f"{float(same.double().mean()):.3f}"
    return row | {
        "score": f"{score(setting.metric, victim, found.inputs):.4g}",
        "explained": "" if math.isnan(found.explained) else f"{found.explained:.4f}",
        "findings": " | ".join(found.findings), "seconds": f"{found.seconds:.2f}",
    }  # fmt: skip


def measure_all(output: Path, settings: Iterable[Setting], seeds: int) -> list[dict[str, str]]:
    """Measure what results.csv does not have yet, and return all its rows.

    Args:
        output: the folder of results.csv.
        settings: the rows of the table.
        seeds: number of victims of each.
    """
    path = output / "results.csv"
    rows = read(path)
    done = {(row["group"], row["setting"], int(row["seed"])) for row in rows}
    for setting in settings:
        for seed in range(min(seeds, setting.most)):
            if (setting.group, setting.name, seed) in done:
                continue
            row = measure(setting, seed)
            new = not path.exists()
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(*(f"{name}={row[name]!s:.90}" for name in COLUMNS if row[name] != ""), flush=True)
    return read(path)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if it is missing."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def summarise(rows: Sequence[dict[str, str]], settings: Iterable[Setting]) -> list[dict[str, str]]:
    """The means over victims, in the order of the settings.

    Args:
        rows: rows of results.csv.
        settings: the rows of the table.
    """
    found = []
    for setting in settings:
        own = [r for r in rows if (r["group"], r["setting"]) == (setting.group, setting.name)]
        if not own:
            continue
        scores = numbers(own, "score")
        entry = dict.fromkeys(SUMMARY, "") | {
            "group": setting.group, "setting": setting.name, "attack": own[0]["attack"],
            "n": str(len(own)), "metric": setting.metric,
            "guess": f"{statistics.fmean(numbers(own, 'guess')):.3g}",
            "finding": own[0]["findings"].split(" | ")[-1],
        }  # fmt: skip
        if scores:
            entry["score"] = f"{statistics.fmean(scores):.3g}"
            entry["spread"] = f"{statistics.stdev(scores):.2g}" if len(scores) > 1 else ""
        for name in ("explained", "labels"):
            if values := numbers(own, name):
                entry[name] = f"{statistics.fmean(values):.2f}"
        found.append(entry)
    return found


def numbers(rows: Iterable[dict[str, str]], name: str) -> list[float]:
    """The finite values of a column."""
    values = [float(row[name]) for row in rows if row[name] != ""]
    return [value for value in values if math.isfinite(value)]


def main(output: Path, seeds: int, only: str | None = None) -> None:
    """Measure, and write summary.csv.

    Args:
        output: a folder, which is made.
        seeds: number of victims of each row.
        only: measure rows whose group or name contains this. If None, all.
    """
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    chosen = [s for s in SETTINGS if only is None or only in f"{s.group}, {s.name}"]
    rows = measure_all(output, chosen, seeds)
    with (output / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, SUMMARY, lineterminator="\n")
        writer.writeheader()
        writer.writerows(summarise(rows, SETTINGS))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only")
    arguments = parser.parse_args()
    main(arguments.output, arguments.seeds, arguments.only)
