"""The curves of a run, read from its TensorBoard files and drawn as small inline SVG charts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from fedleak.errors import BadInput, require
from fedleak.reporting import tags

Points = list[tuple[float, float]]
Curves = dict[str, Points]
"""Tag -> points."""
Victim = tuple[str, str, str]
"""Model, attack, and the update's key."""

MAX_EVENT_BYTES = 2**30  # of all event files of a run
MAX_TAG_LENGTH = 400  # a run's own tags are shorter
MAX_POINTS = 200  # of a line
MAX_LINES = 64  # of a chart
STYLES = 5  # colours with their own dashes in report_style.css
WIDTH, HEIGHT = 360.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 54.0, 22.0, 10.0, 42.0
TICKS = 5
# Smallest cost on a logarithmic axis relative to the largest; below it, a cosine cost is rounding.
LOWEST = 1e-12
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
METRICS = {
    "accuracy": "test accuracy (share)", "loss": "test loss", "ndcg@100": "test NDCG@100",
    "recall@20": "test Recall@20", "recall@50": "test Recall@50",
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Args:
        name: name of the line, shown as a tooltip.
        label: its entry in the legend; several lines may share one.
        style: number of its colour and dash, from 0; lines with the same label have the same style.
        points: pairs of x and y, ordered by x.
    """

    name: str
    label: str
    style: int
    points: Points


@dataclass(frozen=True)
class Chart:
    """The content of a chart.

    Args:
        title: text above the chart.
        x: label of the horizontal axis, which has integer ticks.
        y: label of the vertical axis, with its unit.
        series: the lines, at least one, each with at least one point.
        log: whether the vertical axis is logarithmic.
        note: text below the chart.
    """

    title: str
    x: str
    y: str
    series: Sequence[Series]
    log: bool = False
    note: str = ""


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: dict[float, str]

    def share(self, value: float) -> float:
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def read_scalars(folder: Path) -> dict[str, Curves]:
    """Read the scalars of the event files in a folder and its subfolders.

    Args:
        folder: the folder, which may be missing.

    Returns:
        Sub-run (the name of the subfolder, empty for the folder itself) -> tag -> pairs of step and
        finite value, ordered by step. If a step was written twice, as by a resumed run, the later
        value counts. Sub-runs are in the order in which they started. A file that ends early
        contributes what comes before its end. Empty, if there are no files or TensorBoard is not
        installed.

    Raises:
        BadInput: if the files are larger than 1 GiB in total, or are not event files.
    """
    if not folder.is_dir():
        return {}
    files = [path for path in folder.rglob("*") if "tfevents" in path.name]
    size = sum(path.stat().st_size for path in files if path.is_file())
    require(
        size <= MAX_EVENT_BYTES and all(path.is_file() for path in files),
        f"Expected event files of at most {MAX_EVENT_BYTES:,} bytes in total in {folder}, got "
        f"{size:,}.",
    )
    try:
        from tensorboard.backend.event_processing.event_accumulator import (
            SCALARS,
            EventAccumulator,
        )
    except ImportError:
        return {}
    found: dict[str, Curves] = {}
    begun: dict[str, float] = {}
    for path in sorted({file.parent for file in folder.rglob("events.*")}):
        run = path.relative_to(folder).as_posix() if path != folder else ""
        # With purging, the repeated steps of a resumed run would drop everything before them.
        events = EventAccumulator(str(path), size_guidance={SCALARS: 0}, purge_orphaned_data=False)
        try:
            events.Reload()
            # A file that ends before its first event has no timestamp.
            begun[run] = events.FirstEventTimestamp() if events.file_version else math.inf
            values = {
                tag: events.Scalars(tag)
                for tag in events.Tags()[SCALARS]
                if len(tag) <= MAX_TAG_LENGTH
            }
        except Exception as error:  # damage that the checksum does not show raises anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadInput(
                f"Expected TensorBoard's event files in {path}, got one that cannot be read "
                f"({reason:.200})."
            ) from error
        found[run] = {
            tag: sorted({e.step: e.value for e in points if math.isfinite(e.value)}.items())
            for tag, points in values.items()
        }
    return {run: found[run] for run in sorted(found, key=lambda run: begun[run])}


def global_metrics(scalars: Mapping[str, Curves]) -> dict[str, dict[str, Points]]:
    """The test metrics of the global models.

    Args:
        scalars: sub-run -> tag -> points, see :func:`read_scalars`.

    Returns:
        Metric -> model -> points by round; round 0 is the untrained model.
    """
    found: dict[str, dict[str, Points]] = {}
    for model, curves in scalars.items():
        for tag, points in curves.items():
            metric = tags.split_global_model(tag)
            if metric is not None:
                found.setdefault(metric, {})[model] = points
    return found


def training_charts(scalars: Mapping[str, Curves]) -> list[Chart]:
    """Charts of the global models' test metrics by round, if there are two rounds or more.

    Args:
        scalars: sub-run -> tag -> points, see :func:`read_scalars`.
    """
    found = global_metrics(scalars)
    charts = []
    for metric, title in METRICS.items():
        trained = {
            model: points
            for model, points in found.get(metric, {}).items()
            if len([step for step, _ in points if step > 0]) >= 2
        }
        lines = [
            Series(model, model, index % STYLES, _thin(points))
            for index, (model, points) in enumerate(trained.items())
        ]
        if lines:
            charts.append(Chart(f"Global {metric}", "round (0: untrained)", title, lines))
    return charts


def cost_charts(scalars: Mapping[str, Curves], leaked: Mapping[Victim, bool | None]) -> list[Chart]:
    """Charts of the cost by iteration for every attack on every model, a line for each victim.

    Args:
        scalars: sub-run -> tag -> points, see :func:`read_scalars`.
        leaked: whether a sample of the victim was reconstructed; None if it was not scored.
    """
    labels = {True: "reconstructed", False: "not reconstructed", None: "not scored"}
    styles = {True: 1, False: 0, None: 4}
    found: dict[tuple[str, str], list[Series]] = {}
    for run, curves in scalars.items():
        pair = tags.split_attack_run(run)
        if pair is None:
            continue
        attack, model = pair
        for tag, points in curves.items():
            key = tags.split_victim_cost(tag)
            if key is not None and points:
                round_, client = (int(part[1:]) for part in key.split("-"))
                outcome = leaked.get((model, attack, key))
                name = f"client {client}, round {round_}"
                line = Series(name, labels[outcome], styles[outcome], _thin(points))
                found.setdefault((attack, model), []).append(line)
    charts = []
    for (attack, model), lines in found.items():
        notes = []
        if len(lines) > MAX_LINES:
            notes.append(f"The first {MAX_LINES} of {len(lines)} victims.")
        lines = lines[:MAX_LINES]
        values = [y for line in lines for _, y in line.points]
        log = max(values) > 0
        if log and min(values) <= 0:
            notes.append("Costs of 0 or less, which are rounding errors, are on the lower edge.")
        title = f"{attack} on {model}"
        axis = f"cost (no unit{', log scale' if log else ''})"
        charts.append(Chart(title, "iteration", axis, lines, log, " ".join(notes)))
    return charts


def draw(chart: Chart) -> Markup:
    """Draw a chart as an HTML figure with title, legend, SVG and note.

    Args:
        chart: the content; its texts are escaped.
    """
    across, up = _axes(chart)
    parts = [_grid(across, up), _titles(chart)]
    for line in chart.series:
        places = [
            (LEFT + across.share(x) * (WIDTH - LEFT - RIGHT), _height(up, y, chart.log))
            for x, y in line.points
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        # A line through a single point would be invisible.
        shape = Markup('<polyline points="{}"/>').format(path)
        if len(places) == 1:
            shape = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3"/>').format(*places[0])
        parts.append(
            Markup('<g class="line s{}"><title>{}</title>{}</g>').format(
                line.style, f"{line.name}: {line.label}", shape
            )
        )
    return Markup(
        '<figure class="chart"><figcaption>{}</figcaption>{}'
        '<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>{}</figure>'
    ).format(
        chart.title,
        _legend(chart),
        WIDTH,
        HEIGHT,
        describe(chart),
        Markup("\n").join(parts),
        Markup('<p class="note">{}</p>').format(chart.note) if chart.note else "",
    )


def describe(chart: Chart) -> str:
    """Describe a chart in words, for screen readers."""
    groups: dict[str, list[Points]] = {}
    for line in chart.series:
        groups.setdefault(line.label, []).append(line.points)
    sentences = [f"{chart.title}: {chart.y} by {chart.x}."]
    for label, lines in groups.items():
        starts, ends = [line[0][1] for line in lines], [line[-1][1] for line in lines]
        count = f" ({len(lines)} lines)" if len(lines) > 1 else ""
        sentences.append(f"{label}{count}: starts at {_range(starts)}, ends at {_range(ends)}.")
    return " ".join(sentences)


def _axes(chart: Chart) -> tuple[_Axis, _Axis]:
    xs = [x for line in chart.series for x, _ in line.points]
    ys = [y for line in chart.series for _, y in line.points]
    across = _counting(min(xs), max(max(xs), min(xs) + 1))
    if not chart.log:
        low = min(0.0, *ys)
        return across, _linear(low, max(*ys, low + 1e-9 * max(1.0, -low)))
    high = math.log10(max(ys))
    positive = [y for y in ys if y > 0]
    # At least one decade, so that a cost that has hardly changed does not seem to fall.
    low = min(math.log10(max(min(positive), max(ys) * LOWEST)), high - 1)
    return across, _logarithmic(low, high + 0.03 * (high - low))


def _linear(low: float, high: float) -> _Axis:
    step = _step((high - low) / TICKS)
    ticks = [n * step for n in range(math.ceil(low / step - 1e-9), math.ceil(high / step) + 1)]
    return _Axis(min(low, ticks[0]), max(high, ticks[-1]), {t: f"{t:.10g}" for t in ticks})


def _counting(low: float, high: float) -> _Axis:
    step = max(1.0, _step((high - low) / TICKS))
    ticks = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return _Axis(low, high, {tick: f"{tick:,.0f}" for tick in ticks})


def _logarithmic(low: float, high: float) -> _Axis:
    powers = range(math.ceil(low), math.floor(high) + 1)
    every = max(1, math.ceil(len(powers) / (TICKS + 1)))
    ticks = {float(p): f"10{str(p).translate(SUPERSCRIPTS)}" for p in powers if p % every == 0}
    if len(ticks) < 2:
        values = [n * 10.0**p for p in range(math.floor(low), math.ceil(high)) for n in (1, 2, 5)]
        ticks = {math.log10(v): f"{v:g}" for v in values if low <= math.log10(v) <= high}
    return _Axis(low, high, ticks)


def _step(least: float) -> float:
    """The smallest step of the series ..., 0.5, 1, 2, 5, 10, ... that is at least ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(n * power for n in (1, 2, 5, 10, 20) if n * power >= least * (1 - 1e-9))


def _height(axis: _Axis, value: float, log: bool) -> float:
    place = value
    if log:
        place = math.log10(value) if value > 0 else axis.low
    return HEIGHT - BOTTOM - axis.share(place) * (HEIGHT - BOTTOM - TOP)


def _grid(across: _Axis, up: _Axis) -> Markup:
    """Lines and numbers of both axes."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value, text in up.ticks.items():
        y = _height(up, value, log=False)
        parts.append(
            Markup(
                '<line class="grid" x1="{:g}" y1="{y:.1f}" x2="{:g}" y2="{y:.1f}"/>'
                '<text class="end" x="{:g}" y="{:.1f}">{}</text>'
            ).format(LEFT, right, LEFT - 5, y + 4, text, y=y)
        )
    for value, text in across.ticks.items():
        x = LEFT + across.share(value) * (right - LEFT)
        parts.append(
            Markup('<text class="middle" x="{:.1f}" y="{:g}">{}</text>').format(
                x, bottom + 15, text
            )
        )
    parts.append(Markup('<path class="axis" d="M{0:g} {1:g}V{2:g}H{3:g}"/>').format(
        LEFT, TOP, bottom, right
    ))  # fmt: skip
    return Markup("").join(parts)


def _titles(chart: Chart) -> Markup:
    middle = TOP + (HEIGHT - BOTTOM - TOP) / 2
    return Markup(
        '<text class="middle" x="{:g}" y="{:g}">{}</text>'
        '<text class="middle" transform="translate(12 {:g}) rotate(-90)">{}</text>'
    ).format(LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 8, chart.x, middle, chart.y)


def _legend(chart: Chart) -> Markup:
    entries = {line.label: line.style for line in chart.series}
    items = [
        Markup(
            '<li><svg class="sample" viewBox="0 0 28 10" aria-hidden="true">'
            '<g class="line s{}"><path d="M0 5H28"/></g></svg>{}</li>'
        ).format(style, label)
        for label, style in entries.items()
    ]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))


def _thin(points: Points) -> Points:
    """At most MAX_POINTS of the points, including the first and the last."""
    if len(points) <= MAX_POINTS:
        return points
    stride = math.ceil((len(points) - 1) / (MAX_POINTS - 1))
    return [*points[:-1:stride], points[-1]]


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"
