"""``report.html`` of an audit: its verdict, answers, pictures and settings on one page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedleak.attacks.explained import SUPPORTED_FROM
from fedleak.audit.config import AuditConfig
from fedleak.audit.folder import AuditFolder
from fedleak.audit.results import CANARY, read_rows
from fedleak.audit.summary import AuditSummary
from fedleak.audit.verdict import RUNGS, THREAT_MODELS
from fedleak.reporting.audit_facts import read_facts
from fedleak.reporting.audit_panels import (
    FOUND,
    MAX_SAMPLES,
    audit_panels,
    audit_tables,
    measure_name,
)
from fedleak.reporting.report import page_template
from fedleak.reporting.sweep_display import duration
from fedleak.runs.text_files import write_whole

# Settings of [tool.fedleak] as they are where the app says nothing.
TOLD_NOTHING = {"mean": [0.0], "std": [1.0]}


def write_audit_report(path: Path) -> Path:
    """Write an audit's report.html from the files in its folder.

    Args:
        path: the folder; the audit may be interrupted or still running.

    Returns:
        The path of the page.

    Raises:
        BadInput: if the folder is not an audit's, or a file in it is damaged.
    """
    folder = AuditFolder(path)
    config = AuditConfig.load(folder.config)
    summary = AuditSummary.load(folder.summary) if folder.summary.is_file() else AuditSummary()
    rows = read_rows(folder.results)
    # The clients' own updates before their sums.
    victims = sorted([row for row in rows if row.question != CANARY], key=lambda row: -row.rung)
    verdict = summary.verdict
    page = page_template("audit_template.html").render(
        config=config,
        summary=summary,
        verdict=verdict,
        overall=verdict.overall,
        # That of single updates: rung 0 is of their sum.
        setting=next(
            (answer.setting for answer in verdict.answers if answer.setting and answer.rung), ""
        ),
        rungs=RUNGS,
        threat_models={
            letter: text
            for letter, text in THREAT_MODELS.items()
            if letter in [answer.threat_model for answer in verdict.answers]
        },
        facts=read_facts(folder),
        canary=audit_panels(folder, [row for row in rows if row.question == CANARY]),
        panels=audit_panels(folder, victims),
        tables=audit_tables(folder, victims),
        measure=measure_name(victims or rows),
        reconstruction=FOUND,
        hidden=max(0, len(victims) - MAX_SAMPLES),
        supported_from=SUPPORTED_FROM,
        told=_told(config),
        duration=duration,
        percent=_percent,
        listed=_listed,
        files=_present(folder),
    )
    return write_whole(folder.report, page)


def _present(folder: AuditFolder) -> list[str]:
    """The files and folders behind the page, those that are there and not empty."""
    files = (folder.config, folder.summary, folder.results, folder.privacy)
    folders = [path for path in (folder.facts, folder.samples) if path.is_dir()]
    return [path.name for path in files if path.is_file()] + [
        f"{path.relative_to(folder.path).as_posix()}/" for path in folders if any(path.iterdir())
    ]


def _told(config: AuditConfig) -> dict[str, Any]:
    """What the app's section ``[tool.fedleak]`` says."""
    return {
        name.replace("_", "-"): value
        for name, value in config.settings.items()
        if value is not None and value != TOLD_NOTHING.get(name)
    }


def _listed(values: Mapping[str, Any]) -> str:
    """Settings as ``name = value``, in one line, texts in quotes."""
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def _percent(share: float) -> str:
    """A share as a whole percentage; a dash where there is none."""
    return "–" if share != share else f"{100 * share:.0f} %"
