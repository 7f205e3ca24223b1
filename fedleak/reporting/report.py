"""``report.html``: a run on one page with a verdict in plain language; it needs no network."""

import base64
import io
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from fedleak.config import RunConfig
from fedleak.data.picture_files import opened
from fedleak.errors import BadInput, require
from fedleak.registry import known_classes_only, short_name
from fedleak.reporting.charts import (
    Curves,
    Victim,
    cost_charts,
    draw,
    read_scalars,
    training_charts,
)
from fedleak.reporting.item_lists import read_item_lists
from fedleak.reporting.panels import FORMAT, read_panels
from fedleak.reporting.verdict import find_outcomes, is_finite, is_scored, listing, verdict, wilson
from fedleak.runs.diagnostics import read_diagnostics
from fedleak.runs.folder import Row, RunFolder
from fedleak.runs.results import append_rows, parse_rows
from fedleak.runs.scoring import SCORINGS, ImageScoring, Picture, Scoring, scoring_class
from fedleak.runs.summary import read_summary
from fedleak.runs.text_files import LARGEST_TEXT, decoded
from fedleak.runtime.safe_yaml import read_yaml
from fedleak.updates.files import update_key
from fedleak.updates.truth import GroundTruth

VICTIMS = 64  # with pictures, at most
PAGE_PIXELS = 2**27  # of all their reconstructions, at most: 400 MB in colour


class _View(RunFolder):
    """A run's folder with other rows, and with the truth only where it can be drawn."""

    def __init__(self, path: Path, results: Path, *, drawable: bool) -> None:
        super().__init__(path)
        self.results = results
        self._drawable = drawable

    def read_truth(self, variant: str, round_: int, client: int) -> GroundTruth | None:
        return super().read_truth(variant, round_, client) if self._drawable else None


def write_report(folder: RunFolder, *, trust: bool = False) -> Path:
    """Write a run's report.html from the files in its folder.

    Args:
        folder: the run's folder; the run may be interrupted, or still going on.
        trust: whether classes that config.yaml names may be imported which are neither fedleak's
            own nor installed plugins'.

    Returns:
        The path of the page. It has no originals where summary.json does not tell the data's
        scaling.

    Raises:
        BadInput: if the folder is not a run's, or a file in it is damaged.
    """
    if not trust:
        with known_classes_only():
            return write_report(folder, trust=True)
    config = RunConfig.load(folder.config)
    summary = read_summary(folder.summary) if folder.summary.is_file() else {}
    data = summary.get("data") or {}
    scoring = SCORINGS.get(data.get("kind", ""), scoring_class(config))
    scaling = (tuple(data["mean"]), tuple(data["std"])) if data else None
    rows = _whole_rows(folder.results)
    with TemporaryDirectory() as scratch:
        samples = sorted({_sample(row) for row in rows})
        shown = [row for row in rows if _sample(row) in samples[:VICTIMS]]
        if scoring is not ImageScoring:
            scaling = None
        view = _View(folder.path, Path(scratch) / "shown.csv", drawable=scaling is not None)
        there = [row for row in shown if view.reconstruction(row, scoring.suffix).is_file()]
        _check_size([view.reconstruction(row, scoring.suffix) for row in there], scoring)
        append_rows(view.results, there)
        panels = read_panels(view, config, *(scaling or ((0.0,), (1.0,))))
        lists = read_item_lists(view, config)
    scalars, lost = _scalars(folder.tensorboard)
    page = _template().render(
        config=config,
        settings=config.to_dict(),
        versions=_versions(folder.config),
        summary=summary,
        scoring=scoring,
        shown={name: c for name, c in scoring.columns.items() if any(name in row for row in rows)},
        rows=rows,
        outcomes=find_outcomes(rows),
        panels=panels,
        lists=lists,
        hidden=len(samples[VICTIMS:]),
        diagnostics=read_diagnostics(folder.diagnostics),
        most_diagnostics=VICTIMS,
        clients=client_rows(rows, scoring),
        training=training_charts(scalars),
        costs=cost_charts(scalars, _leaked(rows)),
        lost=lost,
    )
    part = folder.path / "report.part"
    part.write_text(page, encoding="utf-8")
    return part.replace(part.with_suffix(".html"))


def client_rows(rows: Sequence[Row], scoring: type[Scoring] = ImageScoring) -> list[dict[str, str]]:
    """What leaked of every client in every round, on every model: cells of a table."""
    models = list(dict.fromkeys((row["model"], row["defense"]) for row in rows))
    headline = scoring.headline[0]

    def key(row: Row) -> tuple[int, int, int]:
        return row["client"], row["round"], models.index((row["model"], row["defense"]))

    found = []
    for (client, round_, position), members in groupby(sorted(rows, key=key), key):
        group = [row for row in members if is_scored(row)]
        seen = {row["sample"] for row in group}
        leaked = {row["sample"] for row in group if row["success"]}
        comparable = [row for row in group if is_finite(row.get(headline))]
        best = max(comparable, key=lambda row: float(row[headline]), default=None)
        found.append(
            {
                "client": str(client), "round": str(round_), "model": models[position][0],
                "defense": models[position][1], "attack": best["attack"] if best else "–",
                "score": f"{best[headline]:.4f}" if best else "–",
                "leaked": f"{len(leaked)} of {len(seen)}" if seen else "not scored",
            }
        )  # fmt: skip
    return found


def spread(rows: Iterable[Row], name: str, form: str) -> str:
    """Mean and sample deviation of a column; how many cells were finite if not all."""
    values = [row[name] for row in rows if row.get(name) is not None]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "∞" if values and all(value == math.inf for value in values) else "–"
    text = format(statistics.fmean(finite), form)
    if len(finite) > 1:
        text += f" ± {format(statistics.stdev(finite), form)}"
    return text if finite == values else f"{text} ({len(finite)} of {len(values)} finite)"


def plugin_text(kind: str, plugin: Mapping[str, Any]) -> str:
    """A plugin's name and hyperparameters; of a path, which tells of a machine, the last part."""
    name = short_name(kind, plugin["class_path"])
    settings = _flat(plugin["init_args"])
    return f"{name} ({settings})" if settings else name


def data_uri(picture: Picture) -> str:
    """A picture as a PNG in a data URI; grey stays grey."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _flat(settings: Mapping[str, Any]) -> str:
    parts = []
    for name, value in settings.items():
        text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
        if isinstance(value, Mapping):
            text = f"({_flat(value)})"
        elif isinstance(value, str):
            text = re.split(r"[/\\]", value)[-1]
        parts.append(f"{name} {text}")
    return ", ".join(parts)


def _whole_rows(path: Path) -> list[Row]:
    """The rows, but for the last line if it is half written, as by a run that still goes on."""
    if not path.is_file():
        return []
    size = path.stat().st_size
    require(
        size <= LARGEST_TEXT, f"Expected at most {LARGEST_TEXT:,} bytes in {path}, got {size:,}."
    )
    written = path.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    return parse_rows(decoded(whole, path), path) if whole else []


def _check_size(files: Sequence[Path], scoring: type[Scoring]) -> None:
    """Refuse what is too much for a page, before any of it is read."""
    if scoring is not ImageScoring:
        size = sum(path.stat().st_size for path in files)
        require(
            size <= LARGEST_TEXT,
            f"Expected lists of items of at most {LARGEST_TEXT:,} bytes together for a report, got "
            f"{size:,}.",
        )
        return
    pixels = 0
    for path in files:
        with opened(path, FORMAT) as picture:
            pixels += picture.width * picture.height
        require(
            pixels <= PAGE_PIXELS,
            f"Expected pictures of at most {PAGE_PIXELS:,} pixels together for a report, got more "
            f"up to {path}.",
        )


def _scalars(folder: Path) -> tuple[dict[str, Curves], str]:
    """The curves, and why there are none if their files are damaged: the rest needs no curves."""
    try:
        return read_scalars(folder), ""
    except BadInput as error:
        return {}, str(error)


def _versions(config: Path) -> dict[str, str]:
    """The versions that a configuration was made with, as far as it tells."""
    found = read_yaml(config).get("versions")
    if not isinstance(found, dict):
        return {}
    return {str(name): str(version) for name, version in found.items()}


def _leaked(rows: Iterable[Row]) -> dict[Victim, bool | None]:
    """Whether any image of an update was reconstructed; none where nothing was scored."""
    found: dict[Victim, bool | None] = {}
    for row in rows:
        victim = row["model"], row["attack"], update_key(row["round"], row["client"])
        before = found.get(victim)
        found[victim] = bool(before or row["success"]) if is_scored(row) else before
    return found


def _sample(row: Row) -> tuple[int, int, int]:
    return row["round"], row["client"], row["sample"]


def _template() -> Template:
    package = files("fedleak.reporting")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for function in (data_uri, draw, listing, plugin_text, spread, verdict, wilson):
        environment.globals[function.__name__] = function
    environment.globals["style"] = Markup(package.joinpath("report_style.css").read_text("utf-8"))
    return environment.from_string(package.joinpath("report_template.html").read_text("utf-8"))
