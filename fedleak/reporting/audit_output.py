"""What an audit's folder has for readers: figures, TensorBoard, report.html."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from fedleak.audit.folder import AuditFolder
from fedleak.audit.progress import AuditObserver
from fedleak.audit.results import CANARY, SampleRow, read_rows
from fedleak.audit.summary import AuditSummary
from fedleak.audit.verdict import Answer
from fedleak.reporting.audit_panels import FOUND, GUESS, audit_panels, measure_name
from fedleak.reporting.audit_report import write_audit_report
from fedleak.reporting.figures import CARD, FIGURE, Layout, draw_page
from fedleak.reporting.tags import (
    AUDIT_CANARY,
    AUDIT_PICTURES,
    audit_answer,
    audit_guess,
    audit_share,
    audit_text,
)


class AuditOutput(AuditObserver):
    """Writes figures, event files and the page when an audit ends, however it does.

    Args:
        folder: the audit's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = AuditFolder(folder)

    def audit_ended(self, status: str) -> None:
        """See :class:`AuditObserver`."""
        write_audit_figures(self._folder)
        write_audit_events(self._folder)
        write_audit_report(self._folder.path)


def write_audit_figures(folder: AuditFolder) -> list[Path]:
    """Draw true samples beside a guess and the reconstruction, and the canary by itself.

    Args:
        folder: the audit's folder.

    Returns:
        The files, ``reconstructions.png``, ``reconstructions-2.png`` and so on, and
        ``canary.png``; those whose samples are no pictures are left out.

    Raises:
        BadInput: if results.csv or a picture is damaged.
    """
    written = []
    for name, rows in _parts(folder).items():
        for number, page in enumerate(_pages(folder, rows, FIGURE), start=1):
            path = folder.figures / (f"{name}.png" if number == 1 else f"{name}-{number}.png")
            page.save(path)
            written.append(path)
    return written


def write_audit_events(folder: AuditFolder) -> None:
    """Write an audit's event files for TensorBoard, in place of earlier ones.

    Args:
        folder: the audit's folder.

    Raises:
        BadInput: if summary.json, results.csv or a picture is damaged.
    """
    summary = AuditSummary.load(folder.summary)
    folder.tensorboard.mkdir(parents=True, exist_ok=True)
    for old in folder.tensorboard.glob("events.*"):
        old.unlink()
    with SummaryWriter(str(folder.tensorboard)) as writer:
        writer.add_text(audit_text("verdict"), f"{summary.verdict.sentence} ({summary.status})")
        writer.add_text(audit_text("answers"), markdown_table(summary.verdict.answers))
        for answer in summary.verdict.answers:
            if answer.status == "not tried":
                continue
            writer.add_scalar(audit_answer(answer.question), answer.answer.mean, answer.rung)
            writer.add_scalar(audit_guess(answer.question), answer.guess.mean, answer.rung)
            writer.add_scalar(audit_share(answer.question), answer.share, answer.rung)
        for name, rows in _parts(folder).items():
            tag = AUDIT_CANARY if name == CANARY else AUDIT_PICTURES
            for number, page in enumerate(_pages(folder, rows, CARD)):
                writer.add_image(tag, np.asarray(page), number, dataformats="HWC")


def markdown_table(answers: tuple[Answer, ...]) -> str:
    """The answers as a table in Markdown.

    Args:
        answers: the answers.
    """
    head = ("question", "answer", "guess", "n", "result", "threat model", "setting")
    lines = [head, ("---",) * len(head)] + [
        (
            answer.question, str(answer.answer), str(answer.guess), str(answer.answer.n),
            answer.status, answer.threat_model, answer.setting,
        )
        for answer in answers
    ]  # fmt: skip
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def _parts(folder: AuditFolder) -> dict[str, list[SampleRow]]:
    """The rows of the clients and that of the canary, by the name of their figure."""
    rows = read_rows(folder.results)
    return {
        "reconstructions": [row for row in rows if row.question != CANARY],
        CANARY: [row for row in rows if row.question == CANARY],
    }


def _pages(folder: AuditFolder, rows: list[SampleRow], layout: Layout) -> list[Image.Image]:
    panels = audit_panels(folder, rows)
    return [
        draw_page(
            panels[begin : begin + layout.rows], [GUESS, FOUND], "", layout, measure_name(rows)
        )
        for begin in range(0, len(panels), layout.rows)
    ]
