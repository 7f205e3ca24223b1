"""Sentences about failed trainings, from reports as Flower and Ray make them."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedleak.audit.trainings import (
    LEFT_OUT,
    NOT_KEPT,
    clients_in_rounds,
    failed_evaluations,
    failed_trainings,
    other_errors,
    short_reason,
    why_no_update,
)

RAY = """<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'\x1b[36mray::run()\x1b[39m
  File "task.py", line 3, in data
    raise RuntimeError('boom of 3')
builtins.RuntimeError: boom of 3
second line

The above exception was the direct cause of the following exception:

\x1b[36mray::App.run()\x1b[39m (pid=1)
flwr.clientapp.client_app.ClientAppException:
Exception ClientAppException occurred. Message: boom of 3
second line'>"""


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (RAY, "RuntimeError: boom of 3"),
        ("no data", "no data"),
        ("<class 'ray.exceptions.GetTimeoutError'>:<'it took long'>", "it took long"),
        ("<class 'x.E'>:<'ray.exceptions.ActorDiedError: x'>", "its worker process died"),
        ("Traceback (most recent call last):\nValueError: \x1b[31mbad\x1b[0m", "ValueError: bad"),
        ("ValueError\n\nException ClientAppException occurred. Message: '>", "ValueError"),
        ("", "no reason is told"),
        ("x" * 1000, "x" * 200),
    ],
)  # fmt: skip
def test_the_reason_in_a_line(reason: str, said: str) -> None:
    assert short_reason(reason) == said


def written(path: Path, *rows: tuple[int, int, bool, str | None], kind: str = "train") -> Path:
    """A file of replies: round, client, whether it is an error, and the reason."""
    lines: list[dict[str, Any]] = [
        {"round": r, "client": c, "node": 10 + c, "kind": kind, "failed": failed, "reason": reason}
        for r, c, failed, reason in rows
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def test_failures_are_counted_by_their_reason(tmp_path: Path) -> None:
    path = written(
        tmp_path / "replies.jsonl", (1, 0, True, RAY), (1, 1, False, None), (2, 0, True, RAY),
        (2, 1, False, "it has no arrays"), (3, 0, False, LEFT_OUT),
        (3, 1, False, f"{NOT_KEPT}full"),
    )  # fmt: skip
    assert failed_trainings(path) == [
        "2 of 6 trainings failed (client 0 in round 1, client 0 in round 2): "
        "RuntimeError: boom of 3",
        "1 of 6 trainings gave no update (client 1 in round 2): it has no arrays",
    ]
    many = [(1, n, True, f"reason {n % 12}") for n in range(120)]
    *first, last = failed_trainings(written(path, *many))
    assert len(first) == 10
    assert first[0].startswith("10 of 120 trainings failed (client 0 in round 1, client 12 in")
    assert "client 48 in round 1 and 5 more): reason 0" in first[0]
    assert last.startswith("20 of 120 trainings failed, or gave no update, for other reasons")
    assert failed_trainings(written(path, (1, 0, True, RAY), kind="evaluate")) == []
    assert failed_trainings(tmp_path / "none") == []


def test_why_there_is_no_update(tmp_path: Path) -> None:
    path = written(tmp_path / "replies.jsonl", (1, 0, False, LEFT_OUT))
    assert why_no_update(path) == "the settings leave out all of them"
    assert why_no_update(tmp_path / "none") == "no client was asked to train"


def test_clients_in_rounds(tmp_path: Path) -> None:
    own = [(1, 0), (2, 0), (2, 1), (3, 1), (4, 0), (4, 1), (4, 2), (6, 2)]
    path = written(tmp_path / "replies.jsonl", *((r, c, False, None) for r, c in own))
    (said,) = clients_in_rounds(path, 3)
    assert said == (
        "as the app asked them, 1 of 3 clients in rounds 1, 3, 6; 2 of 3 clients in round 2; "
        "3 of 3 clients in round 4 took part in the training"
    )
    half = written(path, *((r, c, False, None) for r in (1, 2) for c in (0, 1)))
    assert clients_in_rounds(half, 2) == []
    assert clients_in_rounds(half, 4) == [
        "as the app asked them, 2 of 4 clients in each round took part in the training"
    ]


def test_evaluations_that_failed_are_told(tmp_path: Path) -> None:
    rows = [
        {"kind": kind, "round": 1, "client": client, "node": client, "failed": failed,
         "reason": "no data" if failed else None}
        for kind, client, failed in (
            ("train", 0, True), ("evaluate", 0, True), ("evaluate", 1, False), ("evaluate", 2, True)
        )
    ]  # fmt: skip
    replies = tmp_path / "replies.jsonl"
    replies.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert failed_evaluations(replies) == [
        "2 of 3 evaluations failed (client 0 in round 1, client 2 in round 1): no data"
    ]
    assert failed_evaluations(tmp_path / "none.jsonl") == []


def test_errors_that_flower_logged_and_no_reply_tells(tmp_path: Path) -> None:
    path = written(tmp_path / "replies.jsonl", (1, 0, True, RAY), (1, 1, False, None))
    lines = [
        "Not enough shares to recover secret in unmask vectors stage",
        "Exception ClientAppException occurred. Message: boom of 3",
        "Traceback (most recent call last):",
    ]
    assert other_errors(lines, path) == [f"Flower logged: {lines[0]}"]
    assert len(other_errors([f"error {number}" for number in range(50)], path)) == 10
    assert other_errors(lines[:1], tmp_path / "none.jsonl") == [f"Flower logged: {lines[0]}"]
