"""What an audit has found so far: in memory and, if it has a folder, in its files."""

import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from fedleak.audit.canary import Canary
from fedleak.audit.folder import AuditFolder
from fedleak.audit.progress import AuditObserver
from fedleak.audit.results import (
    CANARY,
    append_rows,
    drop_rows,
    repair_rows,
    rows_of,
    scores_of,
)
from fedleak.audit.samples import Attacked, keep_samples
from fedleak.audit.summary import AuditSummary, Status
from fedleak.audit.truth_scores import Score, measure_of
from fedleak.audit.verdict import Answer, Estimate
from fedleak.errors import BadInput
from fedleak.runs.spending import SpentRow, write_privacy
from fedleak.runtime.interrupts import delay_interrupts

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
LONGEST_MODEL = 20_000
NOT_REACHED = "the audit ended before"


class Findings:
    """The answers, scores and pictures of an audit, written as soon as they are there.

    Args:
        folder: the audit's folder. If None, nothing is written.
        summary: what an earlier part of the audit has left. If None, nothing has.
        observer: told of the answers.

    Raises:
        BadInput: if the folder's results.csv is damaged.
    """

    def __init__(
        self,
        folder: AuditFolder | None = None,
        summary: AuditSummary | None = None,
        observer: AuditObserver | None = None,
    ) -> None:
        self.summary = summary or AuditSummary()
        self.observer = observer or AuditObserver()
        self._folder = folder
        self._rows = repair_rows(folder.results) if folder is not None else []
        self._new: dict[tuple[int, str], list[Score]] = {}
        self._begun: float | None = None
        self._before = self.summary.used
        self._budget = 0.0

    def begin(self, budget: float) -> None:
        """Begin to use a budget, from which the seconds of an earlier part are subtracted.

        Args:
            budget: seconds.
        """
        self._begun, self._budget = time.monotonic(), budget

    @property
    def left(self) -> float:
        """Seconds of the budget that are left, at least 0."""
        return max(0.0, self._budget - self._used)

    @property
    def _used(self) -> float:
        return self._before + (0.0 if self._begun is None else time.monotonic() - self._begun)

    def save(self, status: Status | None = None, reason: str = "") -> None:
        """Write summary.json.

        Args:
            status: a new status. If None, it stays.
            reason: why the audit failed.
        """
        if status is not None:
            self.summary.status, self.summary.reason = status, reason
        self.summary.used = self._used
        if self._folder is not None:
            with delay_interrupts():
                self.summary.save(self._folder.summary)

    def plan(self, questions: Iterable[tuple[int, str]]) -> None:
        """Note the questions that will be asked, so that no verdict is drawn without them.

        Args:
            questions: rung and question of each.
        """
        self.summary.unfinished = [
            not_tried(rung, question, NOT_REACHED)
            for rung, question in questions
            if self.summary.answer_to(rung, question) is None
        ]
        self.save()

    def check_model(self, model: object) -> None:
        """Note the model, or check that it is that of the audit's earlier part.

        Args:
            model: the module, with all its settings in what torch prints of it.

        Raises:
            BadInput: if it is another one.
        """
        text = ADDRESS.sub("", repr(model))[:LONGEST_MODEL]
        if self.summary.model not in ("", text):
            raise BadInput(
                "Expected the model of the audit's first part, but the ServerApp, started again, "
                'makes another one: name what makes it by `model = "module:attribute"` in '
                "[tool.fedleak] of the app's pyproject.toml, and start anew with `--overwrite`."
            )
        self.summary.model = text

    def set_privacy(self, facts: dict[str, Any] | None, rows: Sequence[SpentRow]) -> None:
        """Keep what the clients have spent of their privacy.

        Args:
            facts: see :attr:`fedleak.audit.summary.AuditSummary.privacy`.
            rows: those of ``privacy.csv``; none if there are no facts.
        """
        self.summary.privacy = facts
        if self._folder is not None and rows:
            write_privacy(self._folder.privacy, rows)
        self.save()

    def scores(self, rung: int, question: str) -> dict[str, Score]:
        """The scores of the updates that were attacked, by key.

        Args:
            rung: the question's rung.
            question: the question.
        """
        earlier = scores_of(self._rows, rung, question)
        return {score.key: score for score in [*earlier, *self._new.get((rung, question), [])]}

    def add_attacked(
        self, rung: int, question: str, attacked: Attacked, so_far: Answer | None = None
    ) -> None:
        """Keep what was made of an update's samples.

        Args:
            rung: the question's rung.
            question: the question.
            attacked: the samples.
            so_far: the answer that follows from the updates attacked by now.
        """
        self._new.setdefault((rung, question), []).append(attacked.score)
        if so_far is not None:
            self.summary.unfinished = [
                so_far if (a.rung, a.question) == (rung, question) else a
                for a in self.summary.unfinished
            ]
        self._keep(rung, question, attacked)
        self.save()

    def add_answer(self, rung: int, question: str, answer: Answer | None) -> None:
        """Keep the answer to a question; None if the question does not apply."""
        self.summary.unfinished = [
            a for a in self.summary.unfinished if (a.rung, a.question) != (rung, question)
        ]
        if answer is not None:
            self.summary.answers.append(answer)
        self.save()
        if answer is not None:
            self.observer.answered(answer)

    def set_canary(self, canary: Canary) -> None:
        """Keep what became of the canary."""
        self.summary.canary = canary.reconstructed
        self.summary.canary_note = canary.note
        self.summary.canary_value = canary.value
        if self._folder is not None:
            drop_rows(self._folder.results, CANARY)
        if canary.attacked is not None:
            self._keep(3, CANARY, canary.attacked)
        self.save()
        self.observer.canary_tried(canary.reconstructed)

    def ask_again(self) -> None:
        """Take back what was not tried, or is not conclusive, so that it is asked again."""
        own = self.summary
        own.answers = [a for a in own.answers if a.status != "not tried" and a.conclusive]
        if own.canary is False:
            own.canary, own.canary_note = None, ""

    def _keep(self, rung: int, question: str, attacked: Attacked) -> None:
        if self._folder is None:
            return
        measure, _ = measure_of(attacked.truth)
        with delay_interrupts():
            # Before the rows: an update whose rows are complete is not attacked again.
            keep_samples(self._folder, attacked)
            append_rows(self._folder.results, rows_of(attacked.score, rung, question, measure))


def not_tried(rung: int, question: str, why: str, setting: str = "") -> Answer:
    """The answer to a question that was not tried.

    Args:
        rung: its rung.
        question: the question.
        why: the reason, without a full stop.
        setting: see :class:`fedleak.audit.verdict.Answer`.
    """
    nothing = Estimate.of([])
    return Answer(
        rung=rung, question=question, measure="", answer=nothing, guess=nothing, gains=(),
        perfect=1.0, threat_model="F" if rung > 3 else "C", attack="none", setting=setting,
        tried=False, note=why,
    )  # fmt: skip
