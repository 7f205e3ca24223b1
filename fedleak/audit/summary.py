"""``summary.json`` of an audit: how far it has come, and its verdict."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

from fedleak.audit.config import KIND
from fedleak.audit.verdict import Answer, Estimate, Verdict
from fedleak.errors import BadInput, require
from fedleak.runs.summary import is_spending
from fedleak.runs.text_files import is_number, parse_json, read_text, write_whole
from fedleak.schema import check_values, shown

Status = Literal["running", "interrupted", "failed", "complete"]


@dataclass
class AuditSummary:
    """The content of an audit's summary.json.

    Args:
        settings: those of the audit, see :class:`fedleak.audit.config.AuditConfig`.
        versions: versions of what computes.
        status: how far the audit has come, or how it has ended.
        reason: why it failed, a sentence; else empty.
        app_complete: whether the app's own run has ended.
        app_seconds: time that it took.
        updates: number of updates that were kept.
        failures: what went wrong in listening, a sentence each.
        model: the model that was found, as torch prints it; empty if none was yet.
        used: seconds of the budget that were used.
        canary: see :class:`fedleak.audit.verdict.Verdict`; None if it was not tried yet.
        canary_note: see there.
        canary_value: see there.
        answers: the answers so far.
        unfinished: answers to the other questions if the audit has ended before: not tried, or of
            a part of the clients. A resumed audit asks these questions again.
        notes: what could not be attacked or is not known, a sentence each.
        mechanisms: strategies with central noise that the ServerApp was seen to use, see
            :class:`fedleak.audit.facts.MechanismFacts`.
        privacy: what the clients have spent, see
            :meth:`fedleak.runs.spending.Spending.facts`; None where no mechanism was seen.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    status: Status = "running"
    reason: str = ""
    app_complete: bool = False
    app_seconds: float = math.nan
    updates: int = 0
    failures: list[str] = field(default_factory=list)
    model: str = ""
    used: float = 0.0
    canary: bool | None = None
    canary_note: str = ""
    canary_value: float = math.nan
    answers: list[Answer] = field(default_factory=list)
    unfinished: list[Answer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    mechanisms: list[dict[str, Any]] = field(default_factory=list)
    privacy: dict[str, Any] | None = None

    @property
    def verdict(self) -> Verdict:
        """The verdict of the answers; what is unfinished is no answer to conclude from."""
        given = sorted([*self.answers, *self.unfinished], key=lambda answer: answer.rung)
        privacy = () if self.privacy is None else tuple(self.privacy["spent"])
        return Verdict(tuple(given), self.canary, self.canary_note, privacy)

    @property
    def not_tried(self) -> list[str]:
        """What was not tried, or not on all updates, and why, a sentence each."""
        answers = self.verdict.answers
        return [answer.sentence for answer in answers if answer.status == "not tried"] + [
            f"{answer.title}: {answer.note}."
            for answer in answers
            if answer.status != "not tried" and not answer.conclusive and answer.note
        ]

    def answer_to(self, rung: int, question: str) -> Answer | None:
        """The answer to a question; None if there is none yet.

        Args:
            rung: its rung.
            question: the question.
        """
        found = [a for a in self.answers if (a.rung, a.question) == (rung, question)]
        return found[0] if found else None

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain values; NaN is None."""
        own = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name not in ("answers", "unfinished")
        }
        own["app_seconds"] = _or_none(self.app_seconds)
        own["canary_value"] = _or_none(self.canary_value)
        unfinished = [[answer.rung, answer.question] for answer in self.unfinished]
        return {"kind": KIND} | own | {
            "unfinished": unfinished, "not_tried": self.not_tried, "verdict": self.verdict.to_dict()
        }  # fmt: skip

    def save(self, path: Path) -> None:
        """Write summary.json.

        Args:
            path: the file.
        """
        write_whole(path, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that :meth:`save` wrote.

        Args:
            path: the file.

        Raises:
            BadInput: if it is missing, damaged, or no audit's.
        """
        values = parse_json(read_text(path), str(path))
        require(
            isinstance(values, dict) and values.get("kind") == KIND,
            f"Expected the summary of an audit in {path}, got that of something else.",
        )
        verdict, pairs = values.get("verdict"), values.get("unfinished")
        own = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        try:
            given = verdict.get("answers") if isinstance(verdict, dict) else None
            if not isinstance(given, list) or not isinstance(pairs, list):
                raise BadInput(f"Expected a list of answers, got {shown(given)}.")
            answers = [_answer(item) for item in given]
            later = [[answer.rung, answer.question] in pairs for answer in answers]
            checked = _checked("the summary", own | {"answers": [], "unfinished": []}, cls)
            require(
                checked.get("privacy") is None or is_spending(checked["privacy"]),
                f"Expected `privacy` to say what was spent, got {shown(checked.get('privacy'))}.",
            )
        except BadInput as error:
            raise BadInput(f"{str(error).rstrip('.')} in {path}.") from error
        return cls(**checked | {
            "answers": [a for a, is_later in zip(answers, later, strict=True) if not is_later],
            "unfinished": [a for a, is_later in zip(answers, later, strict=True) if is_later],
        })  # fmt: skip


def _answer(values: Any) -> Answer:
    """An answer as :meth:`fedleak.audit.verdict.Verdict.to_dict` writes it."""
    require(isinstance(values, Mapping), f"Expected an answer, got {shown(values)}.")
    names = [item.name for item in fields(Answer)]
    # What follows from the others is in the file for its readers.
    own = {name: values[name] for name in names if name in values}
    parts: dict[str, Callable[[Any], Any]] = {
        "answer": _estimate, "guess": _estimate, "gains": _numbers
    }  # fmt: skip
    made = {name: make(own.get(name)) for name, make in parts.items()}
    rest = _checked("answer", {n: v for n, v in own.items() if n not in parts}, Answer, parts)
    return Answer(**rest | made)


def _estimate(values: Any) -> Estimate:
    require(isinstance(values, Mapping), f"Expected an estimate, got {shown(values)}.")
    return Estimate(**_checked("estimate", values, Estimate))


def _numbers(values: Any) -> tuple[float, ...]:
    require(
        isinstance(values, Sequence) and all(v is None or is_number(v) for v in values),
        f"Expected `gains` to be a list of numbers, got {shown(values)}.",
    )
    return tuple(math.nan if value is None else float(value) for value in values)


def _checked(
    title: str, values: Mapping[str, Any], owner: Any, others: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Values of a dataclass, checked; None in place of a number is NaN.

    Args:
        title: what they are, for messages.
        values: plain values by name.
        owner: the dataclass.
        others: names that are given elsewhere.
    """
    for item in fields(owner):
        optional = item.default is not MISSING or item.default_factory is not MISSING
        require(
            optional or item.name in values or item.name in (others or {}),
            f"Expected `{item.name}` in {title}, found none.",
        )
    numbers = {item.name for item in fields(owner) if item.type is float}
    missing = {name for name in numbers if name in values and values[name] is None}
    checked = check_values(title, {n: v for n, v in values.items() if n not in missing}, owner)
    return checked | dict.fromkeys(missing, math.nan)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
