r"""Joins the attacks' success with the accuracy under the same defence, and draws both.

    python experiments/precode-image/compare.py runs/precode-image \
        experiments/accuracy/results/curves.csv experiments/precode-image/results

It writes levels.csv (a row for each model and level), levels.png (attack success rate against
accuracy) and results.csv (a row for each victim), and prints the levels as a table in Markdown.
It can be run while the sweep is at work: a level with no finished attack, or with no accuracy, is a
gap in the table and missing in the figure.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))
from curves import Row, is_complete, read, write
from plot import COLOURS, Line, Panel, draw

COLUMNS = (
    "model", "defence", "victims", "successes", "asr", "ssim", "ssim_std", "psnr", "psnr_std",
    "mse", "mse_std", "accuracy",
)  # fmt: skip
METRICS = ("ssim", "psnr", "mse")
# Kind of defence -> colour and marker; the kind is the first word of a level's name.
LOOKS = {
    "none": (COLOURS[0], "square"),
    "precode": (COLOURS[1], "diamond"),
    "noise": (COLOURS[2], "circle"),
    "pruning": (COLOURS[3], "triangle"),
}


def accuracies(curves: Path) -> dict[tuple[str, str], float]:
    """The accuracy of the federations after their last round, by model and defence."""
    rows = [row for row in read(curves) if row["training"] == "federated"]
    rows.sort(key=lambda row: int(row["round"]))
    return {(row["model"], row["defence"]): float(row["accuracy"]) for row in rows}


def join(sweep: Path, curves: Path) -> tuple[list[Row], list[Row]]:
    """The rows of levels.csv, and those of the victims.

    Args:
        sweep: the folder of a sweep with the axes defence and model.
        curves: curves.csv of experiments/accuracy.
    """
    accuracy = accuracies(curves)
    levels: list[Row] = []
    victims: list[Row] = []
    for cell in read(sweep / "cells.csv"):
        key = (cell["model"], cell["defence"])
        folder = sweep / cell["folder"]
        rows = read(folder / "results.csv") if is_complete(folder) else []
        if not rows and key not in accuracy:
            continue
        victims += [{"level": cell["defence"]} | row for row in rows]
        level = dict.fromkeys(COLUMNS, "") | {"model": key[0], "defence": key[1]}
        if rows:
            successes = sum(int(float(row["success"])) for row in rows)
            level |= {"victims": str(len(rows)), "successes": str(successes)}
            level["asr"] = f"{successes / len(rows):.4f}"
        for name in METRICS if rows else ():
            values = [float(row[name]) for row in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            level |= {name: f"{statistics.fmean(values):.6g}", f"{name}_std": f"{spread:.6g}"}
        if key in accuracy:
            level["accuracy"] = f"{accuracy[key]:.4f}"
        levels.append(level)
    models = list(dict.fromkeys(level["model"] for level in levels))
    levels.sort(key=lambda level: (models.index(level["model"]), *_order(level["defence"])))
    return levels, victims


def panels(levels: Sequence[Row]) -> list[Panel]:
    """A panel for each model: attack success rate by accuracy, both in per cent."""
    whole = [level for level in levels if level["asr"] and level["accuracy"]]
    highest = max([float(level["accuracy"]) for level in whole], default=0.1)
    found = []
    for model in dict.fromkeys(level["model"] for level in levels):
        lines = []
        for kind, (colour, marker) in LOOKS.items():
            chosen = [
                level
                for level in whole
                if level["model"] == model and level["defence"].split()[0] == kind
            ]
            points = [(100 * float(row["accuracy"]), 100 * float(row["asr"])) for row in chosen]
            labels = [level["defence"].removeprefix(kind).strip() for level in chosen]
            if points:
                joined = len(points) > 1
                lines.append(Line(kind, points, colour, marker, joined=joined, labels=labels))
        across = (0.0, 100 * highest * 1.1)
        x, y = "test accuracy of the federation, %", "attack success rate (IGA), %"
        found.append(Panel(model, x, y, lines, across, (-8.0, 112.0)))
    return found


def table(levels: Sequence[Row]) -> str:
    """The levels with means and deviations, accuracy in per cent."""
    columns = ("model", "defence", "success", "SSIM", "PSNR, dB", "MSE", "accuracy, %")
    lines = [columns, ("---",) * len(columns)]
    for level in levels:
        cells = ["-"] * 4
        if level["victims"]:
            ssim, psnr, mse = (
                [float(level[column]) for column in (name, f"{name}_std")] for name in METRICS
            )
            cells = [
                f"{level['successes']} of {level['victims']}", f"{ssim[0]:.4f} ± {ssim[1]:.4f}",
                f"{psnr[0]:.1f} ± {psnr[1]:.1f}", f"{mse[0]:.1e} ± {mse[1]:.1e}",
            ]  # fmt: skip
        accuracy = f"{100 * float(level['accuracy']):.1f}" if level["accuracy"] else "-"
        lines.append((level["model"], level["defence"], *cells, accuracy))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _order(defence: str) -> tuple[int, float]:
    kind, _, level = defence.partition(" ")
    kinds = list(LOOKS)
    return (kinds.index(kind) if kind in kinds else len(kinds), float(level or 0))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: the arguments; none: those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sweep", type=Path, help="the folder of the attacks' sweep")
    parser.add_argument("curves", type=Path, help="curves.csv of experiments/accuracy")
    parser.add_argument("results", type=Path, help="where to write")
    chosen = parser.parse_args(argv)
    levels, victims = join(chosen.sweep, chosen.curves)
    if not victims:
        parser.error(f"Expected at least one finished cell in {chosen.sweep}, found none.")
    chosen.results.mkdir(parents=True, exist_ok=True)
    write(chosen.results / "levels.csv", COLUMNS, levels)
    write(chosen.results / "results.csv", list(victims[0]), victims)
    note = "Success: SSIM of at least 0.6 on pixels in [0, 1]. Numbers: level of the defence."
    draw(panels(levels), note=note).save(chosen.results / "levels.png", optimize=True)
    print(table(levels))


if __name__ == "__main__":
    main()
