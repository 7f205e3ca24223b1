"""What became of the server's messages that ask for a training or an evaluation, in sentences."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flwr.app import MessageType

from fedleak.federation.engine.client_errors import DEAD_WORKER, last_message

LEFT_OUT = "the settings leave it out"
NOT_KEPT = "it could not be kept: "
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LONGEST_REASON, MOST_REASONS, MOST_PLACES = 200, 10, 5


def short_reason(reason: str) -> str:
    """The exception that ended a client, in a line: its type, if that is told, and its message.

    Args:
        reason: the reason of the error in its reply, which may hold the worker's whole trace.
    """
    text = COLOUR.sub("", reason)
    if DEAD_WORKER.search(text):
        return last_message(text)
    message = text.rpartition("occurred. Message: ")[2].strip().removesuffix("'>").strip()
    lines = message.splitlines() or [""]
    # Without Flower's own sentence, it is the trace itself, whose last line has the exception.
    line = lines[-1 if "Traceback (most recent call last)" in message else 0]
    line = last_message(line)[:LONGEST_REASON]
    raised = re.findall(rf"^(?:\w+\.)*(\w+)(?:: )?{re.escape(line)}", text, re.MULTILINE)
    kinds = [kind for kind in raised if kind.endswith(("Error", "Exception", "Interrupt"))]
    return (f"{kinds[0]}: {line}" if line else kinds[0]) if kinds else line or "no reason is told"


def failed_trainings(replies: Path) -> list[str]:
    """What the clients failed of, and which replies hold no update, a sentence for each reason.

    Updates that the settings leave out, and those that could not be written, are not among them.

    Args:
        replies: the file of the lines about the replies, see
            :class:`fedleak.audit.update_listener.UpdateListener`.
    """
    rows = trainings(replies)
    groups: dict[tuple[bool, str], list[dict[str, Any]]] = {}
    for row in rows:
        reason = row["reason"]
        if row["failed"]:
            groups.setdefault((True, short_reason(reason)), []).append(row)
        elif reason is not None and reason != LEFT_OUT and not reason.startswith(NOT_KEPT):
            groups.setdefault((False, reason), []).append(row)
    found = []
    for (failed, reason), own in list(groups.items())[:MOST_REASONS]:
        what = "failed" if failed else "gave no update"
        found.append(f"{len(own)} of {len(rows)} trainings {what} ({_places(own)}): {reason}")
    others = [row for own in list(groups.values())[MOST_REASONS:] for row in own]
    if others:
        found.append(
            f"{len(others)} of {len(rows)} trainings failed, or gave no update, for other reasons, "
            f"see {replies.name}"
        )
    return found


def failed_evaluations(replies: Path) -> list[str]:
    """What the clients' evaluations failed of, a sentence for each reason.

    Args:
        replies: see :func:`failed_trainings`.
    """
    rows = _lines(replies, MessageType.EVALUATE)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["failed"]:
            groups.setdefault(short_reason(row["reason"]), []).append(row)
    return [
        f"{len(own)} of {len(rows)} evaluations failed ({_places(own)}): {reason}"
        for reason, own in list(groups.items())[:MOST_REASONS]
    ]


def other_errors(lines: Sequence[str], replies: Path) -> list[str]:
    """Errors that Flower has logged and no reply tells, a sentence each.

    Args:
        lines: what it has logged.
        replies: see :func:`failed_trainings`.
    """
    rows = [*trainings(replies), *_lines(replies, MessageType.EVALUATE)]
    told = [COLOUR.sub("", row["reason"]) for row in rows if row["failed"] and row["reason"]]

    def known(line: str) -> bool:
        return any(line in reason or last_message(line) in reason for reason in told)

    found = [line for line in lines if not line.startswith("Traceback") and not known(line)]
    return [f"Flower logged: {line[:LONGEST_REASON]}" for line in found[:MOST_REASONS]]


def why_no_update(replies: Path) -> str:
    """Why there is no update where no training failed.

    Args:
        replies: see :func:`failed_trainings`.
    """
    if trainings(replies):
        return "the settings leave out all of them"
    return "no client was asked to train"


def clients_in_rounds(replies: Path, clients: int) -> list[str]:
    """How many clients took part in the rounds, where it is not all of them; else nothing.

    Args:
        replies: see :func:`failed_trainings`.
        clients: number of clients.
    """
    nodes: dict[int, set[int]] = {}
    for row in trainings(replies):
        nodes.setdefault(row["round"], set()).add(row["node"])
    rounds: dict[int, list[int]] = {}
    for round_ in sorted(nodes):
        rounds.setdefault(len(nodes[round_]), []).append(round_)
    if set(rounds) <= {clients}:
        return []
    parts = [
        f"{number} of {clients} clients in "
        + ("each round" if len(rounds) == 1 < len(own) else _rounds(own))
        for number, own in sorted(rounds.items())
    ]
    return [f"as the app asked them, {'; '.join(parts)} took part in the training"]


def trainings(replies: Path) -> list[dict[str, Any]]:
    """The lines about replies to messages that ask for a training.

    Args:
        replies: see :func:`failed_trainings`.
    """
    return _lines(replies, MessageType.TRAIN)


def _lines(replies: Path, kind: str) -> list[dict[str, Any]]:
    """The lines about replies to messages of a kind."""
    text = replies.read_text(encoding="utf-8") if replies.is_file() else ""
    rows: Iterable[dict[str, Any]] = map(json.loads, text.splitlines())
    return [row for row in rows if row["kind"].partition(".")[0] == kind]


def _places(rows: Sequence[dict[str, Any]]) -> str:
    """Client and round of the first lines, and the number of the others."""
    rows = sorted(rows, key=lambda row: (row["round"], row["client"] is None, row["client"] or 0))
    named = [
        f"client {'not known' if row['client'] is None else row['client']} in round {row['round']}"
        for row in rows[:MOST_PLACES]
    ]
    more = len(rows) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _rounds(numbers: Sequence[int]) -> str:
    """The rounds of ascending numbers, in which a span stands for those that follow each other."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return f"round{'s' * (len(numbers) > 1)} " + ", ".join(
        str(span[0]) if len(span) == 1 else f"{span[0]} to {span[-1]}" for span in spans
    )
