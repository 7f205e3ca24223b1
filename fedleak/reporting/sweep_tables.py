"""The tables of a sweep's results."""

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedleak.config import BOTTLENECK, RunConfig
from fedleak.registry import short_name
from fedleak.runs.folder import RunFolder
from fedleak.runs.scoring import CHECKS, EXTRA_COLUMNS, ImageScoring, scoring_class
from fedleak.sweep import Study, SweepFolder, finished_rows, load_study

KEYS = ("dataset", "model", "defense", "attack")
# An axis that changes only these repeats a measurement; its rows are averaged.
REPEATS = {"seed", "victims.clients", "device"}
# Settings that affect how long a run takes, but not its results; the caption omits them.
RUNTIME_SETTINGS = {
    "federation.client_evaluation", "federation.client_timeout", "federation.cpus_per_client",
    "federation.gpus_per_client", "federation.ray_address", "victims.when",
}  # fmt: skip
# Column of the table -> column of results.csv.
METRICS = {
    "ssim": "ssim", "psnr": "psnr", "mse": "mse", "asr": "success",
    "noise_mse": "noise_mse", "seconds": "seconds", "iterations": "iterations",
}  # fmt: skip
TITLES = {
    "dataset": "data set", "model": "model", "defense": "defence", "attack": "attack",
    "ssim": "SSIM", "psnr": "PSNR dB", "mse": "MSE", "asr": "ASR", "noise_mse": "noise MSE",
    "seconds": "seconds", "iterations": "iterations", "lpips": "LPIPS",
    "precision": "precision", "recall": "recall", "f1": "F1", "token_accuracy": "tokens",
    "right": "right", "right_of_guess": "right of guess", "error": "error",
    "error_of_guess": "error of guess", "exact": "exact",
    "label_accuracy": "labels", "explained": "explained",
}  # fmt: skip
FORMS = {
    "ssim": ".4f", "psnr": ".2f", "mse": ".2e", "asr": ".0%", "noise_mse": ".2e",
    "seconds": ".1f", "iterations": ".0f", "lpips": ".4f",
    "precision": ".4f", "recall": ".4f", "f1": ".4f", "token_accuracy": ".4f",
    "right": ".4f", "right_of_guess": ".4f", "error": ".4f", "error_of_guess": ".4f",
    "exact": ".2f", "label_accuracy": ".0%", "explained": ".2f",
}  # fmt: skip

Entry = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """A cell of a sweep with results.

    Args:
        name: the cell's name.
        axes: axis -> name of the cell's value on it.
        folder: the folder of its run.
        config: its configuration.
        rows: its complete rows of results.csv, as text.
    """

    name: str
    axes: dict[str, str]
    folder: RunFolder
    config: RunConfig
    rows: list[dict[str, str]]


def write_tables(output: Path) -> list[Path]:
    """Write the means of a sweep: results.md for reading, table.csv for programs.

    There is a row for every data set, model, defence and attack, and for every value of an axis
    that these do not distinguish.

    Args:
        output: the sweep's folder.

    Returns:
        The files written.

    Raises:
        BadInput: if the study or a cell's configuration is damaged.
    """
    folder = SweepFolder(output)
    study, cells = load_study(folder.study), read_cells(folder)
    splits = splitting_axes(study, cells)
    rounds = len({row["round"] for cell in cells for row in cell.rows}) > 1
    entries = _entries(cells, splits, rounds=rounds)
    names = [_column(name) for name in [*splits, *(["round"] if rounds else [])]]
    metrics = _metrics(cells)
    readable, plain = output / "results.md", output / "table.csv"
    lines = [
        f"# What the updates leak: {output.resolve().name}",
        "",
        *_markdown(entries, names, metrics),
        "",
        *_caption(cells),
        *_missing(folder.read_summary()),
    ]
    readable.write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = [*KEYS, *names, "n"]
    for metric in metrics:
        columns += [metric] if metric == "asr" else [f"{metric}_mean", f"{metric}_std"]
    with plain.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(entries)
    return [readable, plain]


def _metrics(cells: Sequence[Measured]) -> list[str]:
    """The metrics that at least one cell measures."""
    kinds = [(scoring_class(cell.config), cell.config.metrics) for cell in cells]
    images = any(kind is ImageScoring for kind, _ in kinds)
    extra = {name for kind, chosen in kinds for name in kind.extra_columns(chosen)}
    extra |= {name for name in CHECKS if any(row.get(name) for cell in cells for row in cell.rows)}
    usual = [name for name in METRICS if images or name not in ("ssim", "psnr")]
    return [*usual, *(name for name in EXTRA_COLUMNS if name in extra)]


def read_cells(folder: SweepFolder) -> list[Measured]:
    """The cells of a sweep that have results, in the study's order.

    Args:
        folder: the sweep's folder.
    """
    with folder.cells.open(newline="", encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    found = []
    for item in listed:
        run = folder.run(item["cell"])
        rows = finished_rows(run.results)
        if rows:
            axes = {n: v for n, v in item.items() if n not in ("cell", "folder", "config_hash")}
            found.append(Measured(item["cell"], axes, run, RunConfig.load(run.config), rows))
    return found


def splitting_axes(study: Study, cells: Sequence[Measured]) -> list[str]:
    """The axes whose values are not distinguished by data set, model, defence and attack.

    Averaging over the values of such an axis, such as the batch size, would be meaningless.

    Args:
        study: the study.
        cells: its results.
    """
    found = []
    for axis, choices in study.axes.items():
        values: dict[tuple[str, ...], set[str]] = {}
        for cell in cells:
            for row in cell.rows:
                values.setdefault(tuple(row[key] for key in KEYS), set()).add(cell.axes[axis])
        repeats = {key for choice in choices for key in choice.settings} <= REPEATS
        if not repeats and any(len(names) > 1 for names in values.values()):
            found.append(axis)
    return found


def common_settings(configs: Sequence[RunConfig]) -> dict[str, Any]:
    """The settings with the same value in all cells, by dotted names.

    Settings of a plugin are named after its short name and compared among the cells that use it.

    Args:
        configs: the cells' configurations.
    """
    values: dict[str, list[Any]] = {}
    counts: dict[str, int] = {}
    for config in configs:
        parts = _flat(config)
        for owner in {key.split(".")[0] for key in parts}:
            counts[owner] = counts.get(owner, 0) + 1
        for key, value in parts.items():
            values.setdefault(key, []).append(value)
    return {
        key: found[0]
        for key, found in values.items()
        if key not in RUNTIME_SETTINGS
        and found[0] is not None
        and len(found) == counts[key.split(".")[0]]
        and all(value == found[0] for value in found)
    }


def _flat(config: RunConfig) -> dict[str, Any]:
    plain = config.to_dict()
    parts: dict[str, Any] = {}
    for name in plain:
        # Every cell has its own folder, and the table has rows of the baseline.
        if name in ("output", "baseline"):
            continue
        if name in ("data", "model"):
            kind = "models" if name == "model" else name
            _put_plugin(parts, kind, plain[name])
        elif isinstance(plain[name], list):
            for plugin in plain[name]:
                _put_plugin(parts, name, plugin)
        else:
            _put(parts, name, plain[name])
    return parts


def _put_plugin(parts: dict[str, Any], kind: str, plugin: Mapping[str, Any]) -> None:
    name = short_name(kind, plugin["class_path"])
    parts[name] = None  # the cell uses it, even without settings
    for inner, value in plugin["init_args"].items():
        # The bottleneck's settings mean the same in every model, so they are compared across them.
        _put(parts, inner if inner == BOTTLENECK else f"{name}.{inner}", value)


def _put(parts: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(value, dict):
        for inner, content in value.items():
            _put(parts, f"{name}.{inner}", content)
    elif value is not None and value != []:
        parts[name] = value


def _entries(cells: Sequence[Measured], splits: Sequence[str], *, rounds: bool) -> list[Entry]:
    """The rows of the table, in the study's order."""
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for cell in cells:
        labels = [cell.axes[axis] for axis in splits]
        for row in cell.rows:
            extra = [*labels, row["round"]] if rounds else labels
            groups.setdefault((*(row[key] for key in KEYS), *extra), []).append(row)
    names = [*KEYS, *(_column(name) for name in [*splits, *(["round"] if rounds else [])])]
    entries = []
    for key in sorted(groups, key=_order(list(groups))):
        entry: Entry = dict(zip(names, key, strict=True)) | {"n": len(groups[key])}
        for metric, column in (METRICS | {name: name for name in EXTRA_COLUMNS}).items():
            # Not every cell has the extra columns.
            mean, std = _mean_and_std([row.get(column, "") for row in groups[key]])
            entry[metric] = entry[f"{metric}_mean"] = mean
            entry[f"{metric}_std"] = std
        entries.append(entry)
    return entries


def _order(keys: Sequence[tuple[str, ...]]) -> Any:
    """Sort key: by first appearance, the undefended model first among its variants."""
    seen: list[dict[str, int]] = [{} for _ in keys[0]] if keys else []
    bases: dict[str, int] = {}
    for key in keys:
        bases.setdefault(key[1].split("+")[0], len(bases))
        for position, value in zip(seen, key, strict=True):
            position.setdefault(value, len(position))

    def place(key: tuple[str, ...]) -> tuple[Any, ...]:
        first = [position[value] for position, value in zip(seen, key, strict=True)]
        model = key[1]
        return (
            first[0], bases[model.split("+")[0]], "+" in model, first[1],
            key[2] != "none", first[2], *first[4:], first[3],
        )  # fmt: skip

    return place


def _mean_and_std(texts: Sequence[str]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None without values, or if one is not finite."""
    values = [float(text) for text in texts if text]
    if not values or not all(math.isfinite(value) for value in values):
        return None, None
    std = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), std


def _markdown(entries: Sequence[Entry], names: Sequence[str], metrics: Sequence[str]) -> list[str]:
    titles = [*(TITLES[key] for key in KEYS), *names, "n", *(TITLES[m] for m in metrics)]
    rule = ["---"] * (len(KEYS) + len(names)) + ["---:"] * (1 + len(metrics))
    lines = [_line(titles), _line(rule)]
    for entry in entries:
        texts = [str(entry[name]) for name in [*KEYS, *names, "n"]]
        lines.append(_line([*texts, *(_figure(entry, metric) for metric in metrics)]))
    return lines


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _figure(entry: Entry, metric: str) -> str:
    mean, std = entry[f"{metric}_mean"], entry[f"{metric}_std"]
    if mean is None:
        return "-"
    text = format(mean, FORMS[metric])
    # The standard deviation of a share or of equal numbers adds nothing.
    if metric == "asr" or not std:
        return text
    return f"{text} ± {format(std, FORMS[metric])}"


def _caption(cells: Sequence[Measured]) -> list[str]:
    if not cells:
        return ["Nothing was attacked."]
    common = common_settings([cell.config for cell in cells])
    for name in ("space", "success_threshold", "lpips", "item_threshold"):
        common.pop(f"metrics.{name}", None)  # stated below, or by a column
    kinds = [(scoring_class(cell.config), cell.config.metrics) for cell in cells]
    spaces, successes = ({getattr(k, n)(m) for k, m in kinds} for n in ("space", "success"))
    samples = " or ".join(sorted({kind.sample for kind, _ in kinds}))
    metrics = f"Metrics on {spaces.pop()}" if len(spaces) == 1 else "Metrics on different spaces"
    success = f" with {successes.pop()}" if len(successes) == 1 else ""
    lines = [
        f"{metrics}. Means ± sample standard deviations over n reconstructed {samples}s; "
        f"ASR: share of them{success}."
    ]
    if common:
        texts = [f"`{key}` {_short(value)}" for key, value in sorted(common.items())]
        lines += ["", f"The same in all cells: {', '.join(texts)}."]
    return lines


def _missing(summary: Mapping[str, Any]) -> list[str]:
    """The cells that are missing in the table, so that it does not look complete."""
    items = [cell for cell in summary.get("cells", []) if cell["status"] != "complete"]
    lines = [
        f"- `{cell['name']}`: {cell['status']}{': ' + cell['error'] if cell['error'] else ''}"
        for cell in items
    ]
    return ["", "Not complete:", "", *lines] if lines else []


def _column(name: str) -> str:
    """The column of an axis, renamed if the table has another column of that name."""
    return f"{name} setting" if name in (*KEYS, *METRICS, *EXTRA_COLUMNS, "n") else name


def _short(value: Any) -> str:
    # A path is shortened to the file's name, as its folder means nothing on another machine.
    return Path(value).name if isinstance(value, str) and value.startswith("/") else str(value)
