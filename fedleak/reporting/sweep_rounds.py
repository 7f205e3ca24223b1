"""What a sweep's global models are worth, round by round."""

import csv
from pathlib import Path

from fedleak.config import RunConfig
from fedleak.reporting.charts import global_metrics, read_scalars
from fedleak.runs.folder import RunFolder
from fedleak.sweep import SweepFolder

KEYS = ("cell", "model", "round")
Rounds = list[dict[str, str]]


def read_rounds(output: Path) -> Rounds:
    """The test metrics of a sweep's global models, from what its cells have left for TensorBoard.

    Args:
        output: the sweep's folder.

    Returns:
        A row for every round that the server evaluated in cells of two rounds or more, in the order
        of the study: cell, model, round (0: before the first) and the metrics by name.
    """
    with SweepFolder(output).cells.open(newline="", encoding="utf-8") as file:
        cells = [item["cell"] for item in csv.DictReader(file)]
    return [row for cell in cells for row in _of_cell(cell, SweepFolder(output).run(cell))]


def write_rounds(output: Path) -> Path | None:
    """Write rounds.csv: what :func:`read_rounds` gives.

    Args:
        output: the sweep's folder.

    Returns:
        The file, if there are such rounds.
    """
    rows = read_rounds(output)
    if not rows:
        return None
    path = output / "rounds.csv"
    columns = dict.fromkeys([*KEYS, *(name for row in rows for name in row)])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _of_cell(cell: str, run: RunFolder) -> Rounds:
    # A single round trains next to nothing, and its event files may be large with pictures.
    if not run.config.is_file() or RunConfig.load(run.config).federation.rounds < 2:
        return []
    rows: dict[tuple[str, int], dict[str, str]] = {}
    for metric, models in global_metrics(read_scalars(run.path / "tensorboard")).items():
        for model, points in models.items():
            for step, value in points:
                row = {"cell": cell, "model": model, "round": str(int(step))}
                rows.setdefault((model, int(step)), row)[metric] = f"{value:.6g}"
    return [rows[key] for key in sorted(rows)]
