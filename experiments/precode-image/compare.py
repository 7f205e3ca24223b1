r"""Joins the attacks' success with the accuracy under the same defence, and draws both.

    python experiments/precode-image/compare.py runs/precode-image \
        experiments/accuracy/results/curves.csv experiments/precode-image/results

It writes levels.csv (a row for each model and level), levels.png (attack success rate against
accuracy) and results.csv (a row for each victim), and prints the levels as a table in Markdown.
It can be run while the sweep is at work: a level with no finished attack, or with no accuracy, is a
gap in the table and missing in the figure.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))
from curves import COLOURS, Row, is_complete, read, write
from matplotlib.figure import Figure

COLUMNS = (
    "model", "defence", "victims", "successes", "asr", "ssim", "ssim_std", "psnr", "psnr_std",
    "mse", "mse_std", "accuracy",
)  # fmt: skip
METRICS = ("ssim", "psnr", "mse")
# Kind of defence, the first word of a level's name -> colour, marker, and where its levels' numbers
# stand: points right of and above the marker, alignment.
LOOKS = {
    "none": (COLOURS[0], "s", (0, 0), "center"),
    "precode": (COLOURS[1], "D", (0, 0), "center"),
    "noise": (COLOURS[2], "o", (7, 4), "left"),
    "pruning": (COLOURS[3], "^", (-6, -11), "center"),
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
            spread = stdev(values) if len(values) > 1 else 0.0
            level |= {name: f"{fmean(values):.6g}", f"{name}_std": f"{spread:.6g}"}
        if key in accuracy:
            level["accuracy"] = f"{accuracy[key]:.4f}"
        levels.append(level)
    models = list(dict.fromkeys(level["model"] for level in levels))
    levels.sort(key=lambda level: (models.index(level["model"]), *_order(level["defence"])))
    return levels, victims


def figure(levels: Sequence[Row]) -> Figure:
    """A panel for each model: attack success rate by accuracy, both in per cent."""
    whole = [level for level in levels if level["asr"] and level["accuracy"]]
    models = list(dict.fromkeys(level["model"] for level in levels))
    drawing = Figure(figsize=(4.6 * len(models), 4.2), layout="constrained")
    panels = drawing.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
    for model, panel in zip(models, panels, strict=True):
        for kind, (colour, marker, offset, align) in LOOKS.items():
            chosen = [
                level
                for level in whole
                if level["model"] == model and level["defence"].split()[0] == kind
            ]
            points = [(100 * float(row["accuracy"]), 100 * float(row["asr"])) for row in chosen]
            if not points:
                continue
            across, up = zip(*points, strict=True)
            panel.plot(across, up, marker + "-", color=colour, label=kind, alpha=0.8)
            for (x, y), text in together(points, [row["defence"] for row in chosen]):
                panel.annotate(
                    text, (x, y), offset, textcoords="offset points", color=colour,
                    ha=align, va="center", size=8,
                )  # fmt: skip
        panel.set(title=model, xlabel="test accuracy of the federation, %", ylim=(-16, 116))
        panel.set_xlim(0, 122 * max([float(level["accuracy"]) for level in whole], default=1.0))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("attack success rate (IGA), %")
    panels[0].legend(loc="center left", frameon=False)
    drawing.suptitle(
        "Success: SSIM of at least 0.6 on pixels in [0, 1]. Numbers: level of the defence",
        size="medium",
    )
    return drawing


def together(
    points: Sequence[tuple[float, float]], defences: Sequence[str], near: float = 4.0
) -> list[tuple[tuple[float, float], str]]:
    """Where a level's number stands; neighbours of one height share a place."""
    groups: list[list[int]] = []
    for index, (x, y) in enumerate(points):
        for group in groups:
            if all(abs(x - points[i][0]) < near and y == points[i][1] for i in group):
                group.append(index)
                break
        else:
            groups.append([index])
    found = []
    for group in groups:
        middle = (fmean(points[i][0] for i in group), fmean(points[i][1] for i in group))
        names = [defences[i].partition(" ")[2] for i in group]
        found.append((middle, ", ".join(filter(None, names))))
    return found


def table(levels: Sequence[Row]) -> str:
    """The levels with means and standard deviations, accuracy in per cent."""
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
        argv: the arguments. If None, those of the process.
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
    figure(levels).savefig(chosen.results / "levels.png", dpi=120)
    print(table(levels))


if __name__ == "__main__":
    main()
