"""Tables for a terminal of 80 columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fedleak.attacks.explained import SUPPORTED_FROM
from fedleak.config import RunConfig
from fedleak.runs.folder import Row, RunFolder
from fedleak.runs.scoring import (
    CHECKS,
    EXPLAINED,
    LABELS,
    LPIPS,
    SERVER_COLUMNS,
    ImageScoring,
    scoring_class,
)
from fedleak.runs.summary import summarise_rounds


def results_table(summary: Mapping[str, Any], config: RunConfig) -> Table:
    """The table of a run's results: a row for each attack on each model.

    Args:
        summary: the contents of summary.json.
        config: the run's configuration, for the caption.
    """
    federation, victims = config.federation, config.victims
    rounds = victims.rounds or range(1, federation.rounds + 1)
    named = ", ".join(map(str, rounds)) if len(rounds) <= 5 else f"{rounds[0]} to {rounds[-1]}"
    untrained = " (in round 1 the model is untrained)" if 1 in rounds else ""
    defense, scoring = config.defense_name, scoring_class(config)
    told = scoring is ImageScoring and bool(config.attacks or not config.server)
    labels = f"labels {victims.labels_text}, " if told else ""
    seen = "seen as the victims' mean, " if victims.aggregated else ""
    defended = "" if defense == "none" else f"defended by {defense} ({victims.defense_text}), "
    table = Table(
        title=f"What the updates leak: {config.data_name}",
        caption=(
            f"{federation.protocol}, batch size {federation.batch_size}, "
            f"{seen}{labels}clients in {federation.mode} mode, {defended}"
            f"round {named} of {federation.rounds}{untrained}, "
            f"seed {config.seed}. "
            + (
                f"{config.server_text[0].upper()}{config.server_text[1:]}. "
                if config.server
                else ""
            )
            + f"Means over n samples; success: {scoring.success(config.metrics)}. "
            f"Metrics on {scoring.space(config.metrics)}."
            + explained_text(summary["attacks"])
            + readings_text(summary)
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
    """The table of means by round.

    Args:
        rows: rows of results.csv.
        config: the run's configuration.

    Returns:
        The table; None if only one round was attacked.
    """
    entries = summarise_rounds(rows)
    if not entries:
        return None
    table = Table(title="Round by round")
    for name in ("attack", "model"):
        table.add_column(name)
    # Two scores are enough here, beside the table of all rounds.
    shown = dict(
        [item for item in _shown(config, entries).items() if item[0] not in (LPIPS, *CHECKS)][:2]
    )
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
    columns = {**scoring_class(config).columns, **CHECKS}
    for name in SERVER_COLUMNS:
        del columns[name]  # the caption says how many were certified
    # A terminal has no room for more: these say the same as SSIM in other units.
    for name, other in ((EXPLAINED, "mse"), (LABELS, "psnr")):
        if any(entry.get(name) is not None for entry in entries):
            columns.pop(other, None)
    columns[EXPLAINED] = ("expl.", columns[EXPLAINED][1])
    # A check that no row has, such as that of labels which were given, takes no column.
    return {
        name: column
        for name, column in columns.items()
        if any(
            entry.get(name) is not None if name in CHECKS else name in entry for entry in entries
        )
    }


def explained_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """What to say of the share of the updates that reconstructions explain; empty without one.

    Args:
        entries: the attacks of summary.json.
    """
    if all(entry.get(EXPLAINED) is None for entry in entries):
        return ""
    text = " expl.: share of the update that a reconstruction explains."
    number = sum(entry.get("unsupported", 0) for entry in entries)
    if not number:
        return text
    return text + (
        f" {number} of {sum(entry['n'] for entry in entries)} reconstructions are not supported by "
        f"the update (explained below {SUPPORTED_FROM:g}): they count as no success, and nothing "
        "follows from them."
    )


def readings_text(summary: Mapping[str, Any]) -> str:
    """What a malicious server has read, in a sentence; empty without one that reads.

    Args:
        summary: the contents of summary.json.
    """
    readings = (summary.get("server") or {}).get("readings", [])
    if not readings:
        return ""
    found, certified, samples = (
        sum(entry[name] for entry in readings) for name in ("found", "certified", "samples")
    )
    return (
        f" The server read {found} of {samples} samples in {len(readings)} "
        f"reading{'s' * (len(readings) > 1)}"
        + (f", {certified} of them certified; its n is the number that it read." if found else ".")
    )


def paths_line(folder: RunFolder) -> Text:
    """The paths of a run's results, for the end of a command's output."""
    figures = sorted(folder.figures.glob("*.png"))
    lines = [f"  figures      {path}" for path in figures[:1]]
    if folder.results.is_file():  # not where nothing was reconstructed
        lines.append(f"  results      {folder.results}")
    lines += [
        f"  summary      {folder.summary}",
        f"  TensorBoard  tensorboard --logdir {folder.path.parent}",
    ]
    return Text("Look at\n" + "\n".join(lines))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
