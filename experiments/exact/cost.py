r"""What exact_nra costs: seconds and peak memory for more victims, and for larger models.

    python experiments/exact/cost.py --output experiments/exact/results

Each point is a process of its own with one thread: untrained models with PRECODE, photographs, one
image an update, labels known. Victims are read one after the other, as `fedleak attack` does; it
holds eight updates at a time, this script one.
It writes cost.csv (a row for each point, as it comes; points that are there are not made again) and
cost.png, and prints the table in Markdown.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from fedleak.attacks import ExactNRA
from fedleak.data import Photos
from fedleak.models import DMLP, ImageClassifier, LeNet, Precode
from fedleak.updates.knowledge import Knowledge, batch_loss
from fedleak.updates.update import InterceptedUpdate

VICTIMS = (1, 8, 64, 512)
# What makes the models 1, 2, 4, 8 and 16 times as large: hidden units of the perceptron, and of
# LeNet, whose other layers are small, PRECODE's K.
WIDTHS = (512, 860, 1400, 2160, 3250)
SIZES = (256, 520, 1045, 2100, 4205)
# Marks of the figure's axis.
MILLIONS = (0.6e6, 2.5e6, 10e6, 40e6)
COLUMNS = ("axis", "model", "victims", "size", "parameters", "seconds", "peak_mb")

Row = dict[str, str]
Point = tuple[str, str, int, int]


def points() -> list[Point]:
    """Axis, model, number of victims, and width or K."""
    models = (("dmlp", WIDTHS), ("lenet", SIZES))
    found: list[Point] = []
    for model, sizes in models:
        found += [("victims", model, count, sizes[0]) for count in VICTIMS]
        found += [("parameters", model, 8, size) for size in sizes]
    # The long ones last.
    return sorted(found, key=lambda point: point[2])


def make(model: str, size: int, data: Photos) -> ImageClassifier:
    """The untrained model."""
    torch.manual_seed(0)
    shape, classes = data.input_shape, data.num_classes
    if model == "dmlp":
        return DMLP(
            input_shape=shape, num_classes=classes, width=size, precode=Precode(bottleneck_size=256)
        )
    return LeNet(input_shape=shape, num_classes=classes, precode=Precode(bottleneck_size=size))


def measure(point: Point) -> Row:
    """Attack the victims of a point in this process."""
    axis, kind, victims, size = point
    torch.set_num_threads(1)
    data = Photos()
    model = make(kind, size, data)
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    names, parameters = zip(*model.named_parameters(), strict=True)
    seconds = 0.0
    for victim in range(victims):
        images, labels = data.train_set.batch([victim * 97 % len(data.train_set)])
        gradient = torch.autograd.grad(batch_loss(model, (images, labels)), parameters)
        update = InterceptedUpdate(
            1, victim, "fedsgd", 1, kind, sent, dict(zip(names, gradient, strict=True))
        )
        facts = Knowledge(
            model, data.input_shape, data.num_classes, data.mean, data.std, labels=labels
        )
        started = time.perf_counter()
        ExactNRA()([update], facts)
        seconds += time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    count = sum(value.numel() for value in parameters)
    values = (axis, kind, victims, size, count, f"{seconds:.2f}", f"{peak:.0f}")
    return dict(zip(COLUMNS, map(str, values), strict=True))


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, those of a line of the figure together."""
    head = ["more", "model", "victims", "width or K", "parameters", "seconds", "peak MB"]
    lines = [head, ["---"] * len(COLUMNS)]
    for row in sorted(rows, key=_place):
        lines.append([
            row["axis"], row["model"], row["victims"], row["size"], f"{int(row['parameters']):,}",
            row["seconds"], row["peak_mb"],
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _place(row: Row) -> tuple[bool, str, int, int]:
    return row["axis"] == "parameters", row["model"], int(row["victims"]), int(row["size"])


def figure(rows: Sequence[Row]) -> Figure:
    """Seconds and memory against victims, and against parameters."""
    drawing = Figure(figsize=(9, 6), layout="constrained")
    panels = drawing.subplots(2, 2)
    for column, axis in enumerate(("victims", "parameters")):
        for line, (name, title) in enumerate((("seconds", "seconds"), ("peak_mb", "peak MB"))):
            panel = panels[line][column]
            for model, style in (("dmlp", "o-"), ("lenet", "s--")):
                chosen = [row for row in rows if (row["axis"], row["model"]) == (axis, model)]
                chosen.sort(key=_place)
                across, up = ([float(row[key]) for row in chosen] for key in (axis, name))
                panel.plot(across, up, style, label=f"{model} + PRECODE")
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            panel.set_xticks(VICTIMS if axis == "victims" else MILLIONS)
            panel.set_xlabel(axis)
            panel.set_ylabel(title)
            if name == "seconds":
                panel.set_yscale("log")
                panel.set_ylim(0.2, 5000)  # alike in both panels
            else:
                panel.set_ylim(0, 4000)
            panel.grid(alpha=0.3)
    panels[0][0].legend()
    return drawing


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: the arguments. If None, those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="folder of cost.csv and cost.png")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if chosen.point:
        axis, model, victims, size = json.loads(chosen.point)
        print(json.dumps(measure((axis, model, victims, size))))
        return
    if chosen.output is None:
        parser.error("Expected `--output` with the folder of the results, got nothing.")
    chosen.output.mkdir(parents=True, exist_ok=True)
    path = chosen.output / "cost.csv"
    rows = _read(path)
    done = {tuple(row[name] for name in COLUMNS[:4]) for row in rows}
    for point in points():
        if tuple(map(str, point)) in done:
            continue
        command = [sys.executable, __file__, "--point", json.dumps(point)]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(ended.stdout.splitlines()[-1]))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    figure(rows).savefig(chosen.output / "cost.png", dpi=120)
    print(table(rows))


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
