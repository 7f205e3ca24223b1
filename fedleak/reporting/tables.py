"""Tables for a terminal of 80 columns."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fedleak.attacks.base import Attack
from fedleak.config import RunConfig
from fedleak.defenses.base import Defense
from fedleak.registry import SINGULAR, load_class, names
from fedleak.runs.folder import Row, RunFolder
from fedleak.runs.scoring import LPIPS, ImageScoring, scoring_class
from fedleak.runs.summary import summarise_rounds


def results_table(summary: Mapping[str, Any], config: RunConfig) -> Table:
    """The table that a run ends with: a row for each attack on each model.

    Args:
        summary: the contents of summary.json.
        config: the run's configuration, for the caption.
    """
    federation, victims = config.federation, config.victims
    rounds = victims.rounds or range(1, federation.rounds + 1)
    named = ", ".join(map(str, rounds)) if len(rounds) <= 5 else f"{rounds[0]} to {rounds[-1]}"
    untrained = " (in round 1 the model is untrained)" if 1 in rounds else ""
    guard, scoring = config.defense_name, scoring_class(config)
    labels = f"labels {victims.labels_text}, " if scoring is ImageScoring else ""
    defended = "" if guard == "none" else f"defended by {guard}, "
    table = Table(
        title=f"What the updates leak: {config.data_name}",
        caption=(
            f"{federation.protocol}, batch size {federation.batch_size}, "
            f"{labels}clients in {federation.mode} mode, {defended}"
            f"round {named} of {federation.rounds}{untrained}, "
            f"seed {config.seed}. "
            f"Means over n samples; success: {scoring.success(config.metrics)}. "
            f"Metrics on {scoring.space(config.metrics)}."
        ),
        caption_justify="left",
    )
    for name in ("attack", "model"):
        table.add_column(name)
    shown = _shown(config, summary["attacks"])
    for name in ("n", *(title for title, _ in shown.values()), "success", "seconds"):
        table.add_column(name, justify="right")
    for entry in summary["attacks"]:
        table.add_row(
            entry["attack"],
            entry["model"],
            str(entry["n"]),
            *(_number(entry[name], form) for name, (_, form) in shown.items()),
            _number(entry["asr"], ".0%"),
            _number(entry["seconds"], ".1f"),
        )
    return table


def rounds_table(rows: Sequence[Row], config: RunConfig) -> Table | None:
    """The means round by round; none if only one round was attacked.

    Args:
        rows: rows of results.csv.
        config: the run's configuration.
    """
    entries = summarise_rounds(rows)
    if not entries:
        return None
    table = Table(title="Round by round")
    for name in ("attack", "model"):
        table.add_column(name)
    # Two scores are enough here, beside the table of all rounds.
    shown = dict([item for item in _shown(config, entries).items() if item[0] != LPIPS][:2])
    for name in ("round", "n", *(title for title, _ in shown.values()), "success"):
        table.add_column(name, justify="right")
    for before, entry in zip([None, *entries], entries, strict=False):
        same = before and (before["attack"], before["model"]) == (entry["attack"], entry["model"])
        table.add_row(
            "" if same else entry["attack"],
            "" if same else entry["model"],
            str(entry["round"]),
            str(entry["n"]),
            *(_number(entry[name], form) for name, (_, form) in shown.items()),
            _number(entry["asr"], ".0%"),
        )
    return table


def _shown(config: RunConfig, entries: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Title and format of the scores that a table's entries have."""
    columns = scoring_class(config).columns
    return {
        name: column for name, column in columns.items() if any(name in entry for entry in entries)
    }


def paths_line(folder: RunFolder) -> Text:
    """Where to look next."""
    figures = sorted(folder.figures.glob("*.png"))
    lines = [f"  figures      {path}" for path in figures[:1]]
    lines += [
        f"  results      {folder.results}",
        f"  summary      {folder.summary}",
        f"  TensorBoard  tensorboard --logdir {folder.path.parent}",
    ]
    return Text("Look at\n" + "\n".join(lines))


def plugin_table(kind: str) -> Table:
    """The plugins of a kind: attacks and defences with their facts, the others with a summary.

    Args:
        kind: ``attacks``, ``data``, ``defenses`` or ``models``.
    """
    columns = {"attacks": ("paper", "facts"), "defenses": ("what it is", "facts")}
    table = Table(title=f"{SINGULAR[kind].capitalize()}s", show_lines=kind in columns)
    table.add_column("name")
    for title in columns.get(kind, ("what it is",)):
        # An address of arXiv has 32 characters and should stay in one piece in 80 columns.
        least, most = {"paper": (32, None), "facts": (None, 26)}.get(title, (None, None))
        table.add_column(title, overflow="fold", min_width=least, max_width=most)
    for row in plugin_facts(kind):
        cells = {"paper": row.get("paper"), "what it is": row["summary"], "facts": _facts(row)}
        table.add_row(row["name"], *(cells[name] for name in columns.get(kind, ("what it is",))))
    return table


def plugin_facts(kind: str) -> list[dict[str, Any]]:
    """What is true of each plugin of a kind, for tables: a row for each, in the order of names.

    Args:
        kind: ``attacks``, ``data``, ``defenses`` or ``models``.

    Returns:
        For each plugin its ``name`` on the command line, its ``class_path``, and as ``summary`` the
        first sentence of its docstring; of attacks and defences also every class attribute that
        :class:`fedleak.attacks.base.Attack` or :class:`fedleak.defenses.base.Defense` annotates, by
        its name, as text, bool or int (``-`` for one that a plugin does not set).
    """
    base: type[Any] | None = {"attacks": Attack, "defenses": Defense}.get(kind)
    facts = inspect.get_annotations(base) if base else {}
    rows = []
    for name, point in names(kind).items():
        path = point.value.replace(":", ".")
        found = load_class(path)
        row = {"name": name, "class_path": path, "summary": _summary(found)}
        rows.append({fact: getattr(found, fact, "-") for fact in facts} | row)
    return rows


def _facts(row: Mapping[str, Any]) -> str:
    """The facts of an attack or a defence in a few lines."""
    lines = [row.get("family"), row.get("threat_model"), f"needs {row.get('needs')}"]
    if "batches" in row:
        lines += [
            f"batches: {'yes' if row['batches'] else 'no'}",
            f"local steps: {row['local_steps']}",
            f"noise: {'restored' if row['restores_noise'] else row['noise']}",
        ]
    return "\n".join(map(str, lines))


def _summary(found: type[Any]) -> str:
    """The first sentence of a class's docstring, without what only a documentation tool reads."""
    paragraph = " ".join(inspect.cleandoc(found.__doc__ or "").partition("\n\n")[0].split())
    return re.sub(r"[;,]? see :\w+:`[^`]*`", "", paragraph)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
