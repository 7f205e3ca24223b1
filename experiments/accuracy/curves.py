r"""Collects the accuracy after every round of the cells of sweeps, and draws it.

    python experiments/accuracy/curves.py runs/accuracy runs/accuracy-centralised \
        --output experiments/accuracy/results

It reads what the finished cells have left for TensorBoard and writes curves.csv (a row for each
round of each cell), curves.png and, of trainings by fedsgd, fedsgd.png into the last folder. It
prints the last round's accuracy as a table in Markdown, and can be run while a sweep is at work.
Of trainings that none of the sweeps has, the rows stay that an earlier call has collected.
"""

import argparse
import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from fedleak.reporting.charts import global_metrics, read_scalars

AXES = ("training", "defence", "model")
COLUMNS = (*AXES, "round", "accuracy", "loss")

# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F",
)  # fmt: skip

Row = dict[str, str]


def collect(sweep: Path) -> list[Row]:
    """The rows of curves.csv.

    Args:
        sweep: the folder of a sweep with the axes training, defence and model.

    Raises:
        ValueError: if a finished cell has no test accuracy in its event files.
    """
    rows: list[Row] = []
    for cell in read(sweep / "cells.csv"):
        folder = sweep / cell["folder"]
        if not is_complete(folder):
            continue
        found = global_metrics(read_scalars(folder / "tensorboard"))
        if "accuracy" not in found:
            raise ValueError(f"Expected the test accuracy in {folder}/tensorboard, found none.")
        (model,) = found["accuracy"]
        losses = dict(found.get("loss", {}).get(model, []))
        for step, accuracy in found["accuracy"][model]:
            loss = losses.get(step)
            rows.append({axis: cell[axis] for axis in AXES} | {
                "round": str(int(step)), "accuracy": f"{accuracy:.4f}",
                "loss": "" if loss is None else f"{loss:.4f}",
            })  # fmt: skip
    return rows


def shared(rows: Sequence[Row]) -> list[str]:
    """The defences that the study has for every model, in its order."""
    models = {row["model"] for row in rows}
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["defence"], set()).add(row["model"])
    return [defence for defence, having in found.items() if having == models]


def figure(rows: Sequence[Row], defences: Sequence[str]) -> Figure:
    """A panel for each model: accuracy in per cent by round, centralised training dashed."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    drawing = Figure(figsize=(8.4, 3.3 * math.ceil(len(models) / 2) + 0.8), layout="constrained")
    panels = drawing.subplots(math.ceil(len(models) / 2), 2, sharey=True, squeeze=False).flat
    for model, panel in zip(models, panels, strict=False):
        for training in dict.fromkeys(row["training"] for row in rows):
            for index, defence in enumerate(defences):
                points = [
                    (int(row["round"]), 100 * float(row["accuracy"]))
                    for row in rows
                    if [row[axis] for axis in AXES] == [training, defence, model]
                ]
                if points:
                    panel.plot(
                        *zip(*points, strict=True),
                        color=COLOURS[index % len(COLOURS)],
                        linestyle="--" if training == "centralised" else "-",
                        label=f"{defence}, {training}",
                    )
        panel.set(title=model, xlabel="round (0: untrained)", ylim=0)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(axis="y", alpha=0.3)
    drawing.supylabel("test accuracy, %", size="medium")
    for panel in panels:
        panel.axis("off")
    entries: dict[str, Artist] = {}
    for panel in drawing.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    drawing.legend(entries.values(), entries, loc="outside lower center", ncols=3, frameon=False)
    drawing.suptitle(
        "Test accuracy over all test images; a round of a centralised training is an epoch",
        size="medium",
    )
    return drawing


def table(rows: Sequence[Row]) -> str:
    """The accuracy after the last round in per cent, a row for each training and defence."""
    last = {tuple(row[axis] for axis in AXES): row["accuracy"] for row in rows}
    models = list(dict.fromkeys(model for _, _, model in last))
    lines = [["training", "defence", *models], ["---"] * (2 + len(models))]
    for training, defence in dict.fromkeys(key[:2] for key in last):
        found = [last.get((training, defence, model)) for model in models]
        lines.append([training, defence, *(f"{100 * float(a):.1f}" if a else "-" for a in found)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def is_complete(folder: Path) -> bool:
    """Whether a run has ended well."""
    file = folder / "summary.json"
    return file.is_file() and json.loads(file.read_text("utf-8"))["status"] == "complete"


def read(path: Path) -> list[Row]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Write rows as a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: the arguments. If None, those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sweep", type=Path, nargs="+", help="the sweeps' folders")
    parser.add_argument("--output", type=Path, required=True, help="folder of curves.csv and .png")
    chosen = parser.parse_args(argv)
    sweeps = [sweep for sweep in chosen.sweep if (sweep / "cells.csv").is_file()]
    rows = [row for sweep in sweeps for row in collect(sweep)]
    if not rows:
        parser.error("Expected at least one finished cell, found none.")
    chosen.output.mkdir(parents=True, exist_ok=True)
    collected = chosen.output / "curves.csv"
    if collected.is_file():
        new = {row["training"] for row in rows}
        rows = [row for row in read(collected) if row["training"] not in new] + rows
    write(collected, COLUMNS, rows)
    # A round of fedsgd is a single step, so its curves have axes of their own.
    for name, one_step in (("curves.png", False), ("fedsgd.png", True)):
        chosen_rows = [row for row in rows if (row["training"] == "fedsgd") == one_step]
        if chosen_rows:
            defences = dict.fromkeys(row["defence"] for row in chosen_rows)
            both = [d for d in defences if one_step or d in shared(chosen_rows)]
            figure(chosen_rows, both).savefig(chosen.output / name, dpi=120)
    print(table(rows))


if __name__ == "__main__":
    main()
