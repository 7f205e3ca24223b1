r"""Collects the results of the cells of training.yaml: ranking metrics, and attacks by round.

    python experiments/fedvae/training.py runs/fedvae-training --output experiments/fedvae/results

It writes training.csv (a row for each evaluated round of each finished cell) and attacked.csv (a
row for each victim), and prints both as tables in Markdown: means and standard deviations over the
seeds. For the first federation it writes artists.md: the items recovered for one victim of each
attacked round.
"""

import argparse
import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from fedleak.config import RunConfig
from fedleak.reporting.charts import global_metrics, read_scalars
from fedleak.reporting.item_lists import read_item_lists
from fedleak.runs.folder import RunFolder

# Of a victim's list in artists.md.
LINES = 12
METRICS = ("ndcg@100", "recall@20", "recall@50")
ATTACKED = ("round", "client", "attack", "precision", "recall", "f1", "success", "noise_mse")

Row = dict[str, str]


def collect(sweep: Path) -> tuple[list[Row], list[Row]]:
    """The rows of training.csv and of attacked.csv, from a sweep's finished cells."""
    metrics: list[Row] = []
    attacked: list[Row] = []
    for cell in _read(sweep / "cells.csv"):
        folder = sweep / cell["folder"]
        summary = folder / "summary.json"
        if not summary.is_file() or json.loads(summary.read_text())["status"] != "complete":
            continue
        axes = {"seed": cell["seed"], "training": cell["training"]}
        found: dict[int, Row] = {}
        evaluated = global_metrics(read_scalars(folder / "tensorboard"))
        for name in METRICS:
            for points in evaluated.get(name, {}).values():
                for step, value in points:
                    found.setdefault(int(step), {})[name] = f"{value:.4f}"
        metrics += [axes | {"round": str(step)} | found[step] for step in sorted(found)]
        if (folder / "results.csv").is_file():
            rows = _read(folder / "results.csv")
            attacked += [axes | {name: row[name] for name in ATTACKED} for row in rows]
    return metrics, attacked


def table(metrics: Sequence[Row]) -> str:
    """Each metric after the last round: mean and standard deviation over the seeds."""
    last = {(row["training"], row["seed"]): row for row in metrics}
    lines = [["training", "seeds", "rounds", *METRICS], ["---"] * (3 + len(METRICS))]
    for training in dict.fromkeys(key[0] for key in last):
        rows = [row for key, row in last.items() if key[0] == training]
        figures = [_spread([float(row[name]) for row in rows]) for name in METRICS]
        lines.append([training, str(len(rows)), rows[0]["round"], *figures])
    return _markdown(lines)


def attacks(attacked: Sequence[Row]) -> str:
    """F1 by attack and round, over the victims of all seeds."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in attacked:
        groups.setdefault((row["attack"], row["round"]), []).append(row)
    lines = [["attack", "round", "n", "P", "R", "F1"], ["---"] * 6]
    for (attack, round_), rows in sorted(groups.items(), key=lambda i: (i[0][0], int(i[0][1]))):
        names = ("precision", "recall", "f1")
        figures = [_spread([float(row[name]) for row in rows]) for name in names]
        lines.append([attack, round_, str(len(rows)), *figures])
    return _markdown(lines)


def lists(sweep: Path) -> str:
    """Items by name, the true ones and those found, of the first federation that was attacked."""
    for cell in _read(sweep / "cells.csv"):
        folder = RunFolder(sweep / cell["folder"])
        if not folder.results.is_file() or not _read(folder.results):
            continue
        seen: set[int] = set()
        parts = ["# What was read of one user of each attacked round"]
        for found in read_item_lists(folder, RunConfig.load(folder.config)):
            if found.round in seen:
                continue
            seen.add(found.round)
            table = found.markdown().splitlines()
            left = len(table) - 2 - LINES
            more = f"\n\nAnd {left} more." if left > 0 else ""
            rows = "\n".join(table[: 2 + LINES])
            parts.append(f"Round {found.round}, client {found.client}\n\n{rows}{more}")
        return "\n\n".join(parts) + "\n"
    return ""


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: the arguments. If None, those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sweep", type=Path, help="the sweep's folder")
    parser.add_argument("--output", type=Path, required=True, help="folder of the CSV files")
    chosen = parser.parse_args(argv)
    metrics, attacked = (
        collect(chosen.sweep) if (chosen.sweep / "cells.csv").is_file() else ([], [])
    )
    if not metrics:
        parser.error("Expected at least one finished cell, found none.")
    chosen.output.mkdir(parents=True, exist_ok=True)
    _write(chosen.output / "training.csv", metrics)
    print(table(metrics))
    if attacked:
        _write(chosen.output / "attacked.csv", attacked)
        print("\n" + attacks(attacked))
        (chosen.output / "artists.md").write_text(lists(chosen.sweep), encoding="utf-8")


if __name__ == "__main__":
    main()
