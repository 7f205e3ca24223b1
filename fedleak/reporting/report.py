"""``report.html``: a self-contained page with a run's results and a verdict in plain language."""

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

from fedleak.attacks.explained import SUPPORTED_FROM
from fedleak.config import RunConfig
from fedleak.data.picture_files import open_image
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
from fedleak.reporting.panels import FORMATS, read_panels
from fedleak.reporting.verdict import find_outcomes, is_finite, is_scored, listing, verdict, wilson
from fedleak.runs.ceilings import ceiling_notes
from fedleak.runs.diagnostics import read_diagnostics
from fedleak.runs.folder import Row, RunFolder
from fedleak.runs.results import append_rows, parse_rows
from fedleak.runs.scoring import CHECKS, SCORINGS, ImageScoring, Picture, Scoring, scoring_class
from fedleak.runs.summary import federation_notes, read_summary, server_notes
from fedleak.runs.text_files import LARGEST_TEXT, decoded, write_whole
from fedleak.runtime.safe_yaml import read_yaml
from fedleak.updates.files import update_key
from fedleak.updates.truth import GroundTruth

MAX_VICTIMS = 64  # with pictures
MAX_PIXELS = 2**27  # of all their reconstructions: 400 MB in colour


class _SelectedRows(RunFolder):
    """A run's folder with a selection of its rows, and without truth that cannot be drawn."""

    def __init__(self, path: Path, results: Path, *, drawable: bool) -> None:
        super().__init__(path)
        self.results = results
        self._drawable = drawable

    def read_truth(self, variant: str, round_: int, client: int) -> GroundTruth | None:
        return super().read_truth(variant, round_, client) if self._drawable else None


def write_report(folder: RunFolder, *, trust: bool = False) -> Path:
    """Write a run's report.html from the files in its folder.

    Args:
        folder: the run's folder; the run may be interrupted or still running.
        trust: whether classes that config.yaml names may be imported even if they are neither
            fedleak's own nor installed plugins.

    Returns:
        The path of the page. It has no originals if summary.json does not record the data's
        scaling.

    Raises:
        BadInput: if the folder is not a run's folder, or a file in it is damaged.
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
        shown = [row for row in rows if _sample(row) in samples[:MAX_VICTIMS]]
        if scoring is not ImageScoring:
            scaling = None
        view = _SelectedRows(folder.path, Path(scratch) / "rows.csv", drawable=scaling is not None)
        saved = [row for row in shown if view.reconstruction(row, scoring.suffix).is_file()]
        _check_size([view.reconstruction(row, scoring.suffix) for row in saved], scoring)
        append_rows(view.results, saved)
        panels = read_panels(view, config, *(scaling or ((0.0,), (1.0,))))
        lists = read_item_lists(view, config)
    scalars, damage = _scalars(folder.tensorboard)
    page = page_template("report_template.html").render(
        config=config,
        settings=config.to_dict(),
        versions=_versions(folder.config),
        summary=summary,
        notes=federation_notes(summary["federation"]) if summary else [],
        server_notes=server_notes(summary["server"]) if summary.get("server") else [],
        privacy=summary.get("privacy", []),
        ceilings=ceiling_notes(summary.get("ceilings", [])),
        scoring=scoring,
        shown=_shown(rows, scoring),
        supported_from=SUPPORTED_FROM,
        rows=rows,
        outcomes=find_outcomes(rows),
        panels=panels,
        lists=lists,
        hidden=len(samples[MAX_VICTIMS:]),
        diagnostics=read_diagnostics(folder.diagnostics),
        max_diagnostics=MAX_VICTIMS,
        clients=client_rows(rows, scoring),
        training=training_charts(scalars),
        costs=cost_charts(scalars, _leaked(rows)),
        damage=damage,
    )
    return write_whole(folder.path / "report.html", page)


def _shown(rows: Sequence[Row], scoring: type[Scoring]) -> dict[str, tuple[str, str]]:
    """Title and format of the columns of the table of results."""
    found = {n: column for n, column in scoring.columns.items() if any(n in row for row in rows)}
    checked = {n: c for n, c in CHECKS.items() if any(row.get(n) is not None for row in rows)}
    return found | checked


def client_rows(rows: Sequence[Row], scoring: type[Scoring] = ImageScoring) -> list[dict[str, str]]:
    """The cells of the table of clients: the best result by client, round and model.

    Args:
        rows: rows of results.csv.
        scoring: how they are scored.
    """
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
    """Mean ± sample standard deviation of a column, and the number of finite cells if not all are.

    Args:
        rows: rows of results.csv.
        name: the column.
        form: format of the numbers, such as ``.4f``.
    """
    values = [row[name] for row in rows if row.get(name) is not None]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "∞" if values and all(value == math.inf for value in values) else "–"
    text = format(statistics.fmean(finite), form)
    if len(finite) > 1:
        text += f" ± {format(statistics.stdev(finite), form)}"
    return text if finite == values else f"{text} ({len(finite)} of {len(values)} finite)"


def plugin_text(kind: str, plugin: Mapping[str, Any]) -> str:
    """A plugin's name and hyperparameters; paths are shortened to their last part."""
    name = short_name(kind, plugin["class_path"])
    settings = _flat(plugin["init_args"])
    return f"{name} ({settings})" if settings else name


def data_uri(picture: Picture) -> str:
    """A picture ``(H, W)`` or ``(H, W, 3)`` as a PNG in a data URI."""
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
    """The rows without an incomplete last line, as a run that is still running may leave."""
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
    """Refuse files that are too large for a page, before any of them is read."""
    if scoring is not ImageScoring:
        size = sum(path.stat().st_size for path in files)
        require(
            size <= LARGEST_TEXT,
            f"Expected lists of items of at most {LARGEST_TEXT:,} bytes in total for a report, got "
            f"{size:,}.",
        )
        return
    pixels = 0
    for path in files:
        with open_image(path, FORMATS) as picture:
            pixels += picture.width * picture.height
        require(
            pixels <= MAX_PIXELS,
            f"Expected pictures of at most {MAX_PIXELS:,} pixels in total for a report, got more "
            f"up to {path}.",
        )


def _scalars(folder: Path) -> tuple[dict[str, Curves], str]:
    """The curves; if their files are damaged, none and the reason, as the page needs no curves."""
    try:
        return read_scalars(folder), ""
    except BadInput as error:
        return {}, str(error)


def _versions(config: Path) -> dict[str, str]:
    """The package versions that a config.yaml records."""
    found = read_yaml(config).get("versions")
    if not isinstance(found, dict):
        return {}
    return {str(name): str(version) for name, version in found.items()}


def _leaked(rows: Iterable[Row]) -> dict[Victim, bool | None]:
    """Whether any sample of an update was reconstructed; None if nothing was scored."""
    found: dict[Victim, bool | None] = {}
    for row in rows:
        victim = row["model"], row["attack"], update_key(row["round"], row["client"])
        before = found.get(victim)
        found[victim] = bool(before or row["success"]) if is_scored(row) else before
    return found


def _sample(row: Row) -> tuple[int, int, int]:
    return row["round"], row["client"], row["sample"]


def page_template(name: str) -> Template:
    """The template of a page, with the functions and the style that pages share.

    Args:
        name: its file in this package.
    """
    package = files("fedleak.reporting")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for function in (data_uri, draw, listing, plugin_text, spread, verdict, wilson):
        environment.globals[function.__name__] = function
    environment.globals["style"] = Markup(package.joinpath("report_style.css").read_text("utf-8"))
    return environment.from_string(package.joinpath(name).read_text("utf-8"))
