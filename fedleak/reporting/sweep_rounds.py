"""Test metrics of a sweep's global models by round."""

import csv
from pathlib import Path

from fedleak.config import RunConfig
from fedleak.reporting.charts import global_metrics, read_scalars
from fedleak.runs.folder import RunFolder
from fedleak.sweep import SweepFolder

KEYS = ("cell", "model", "round")
Rounds = list[dict[str, str]]


def read_rounds(output: Path) -> Rounds:
    """The test metrics of a sweep's global models, from the TensorBoard files of its cells.

    Args:
        output: the sweep's folder.

    Returns:
        A row for every evaluated round of the cells with two rounds or more, in the order of the
        study: cell, model, round (0 is the untrained model) and the metrics by name.

    Raises:
        BadInput: if the TensorBoard files of a cell are damaged.
    """
    with SweepFolder(output).cells.open(newline="", encoding="utf-8") as file:
        cells = [item["cell"] for item in csv.DictReader(file)]
    return [row for cell in cells for row in _cell_rounds(cell, SweepFolder(output).run(cell))]


def write_rounds(output: Path) -> Path | None:
    """Write the rows of :func:`read_rounds` to rounds.csv.

    Args:
        output: the sweep's folder.

    Returns:
        The file; None if there are no rows.
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


def _cell_rounds(cell: str, run: RunFolder) -> Rounds:
    # A single round hardly trains the model, and its event files may be large with pictures.
    if not run.config.is_file() or RunConfig.load(run.config).federation.rounds < 2:
        return []
    rows: dict[tuple[str, int], dict[str, str]] = {}
    for metric, models in global_metrics(read_scalars(run.path / "tensorboard")).items():
        for model, points in models.items():
            for step, value in points:
                row = {"cell": cell, "model": model, "round": str(int(step))}
                rows.setdefault((model, int(step)), row)[metric] = f"{value:.6g}"
    return [rows[key] for key in sorted(rows)]
