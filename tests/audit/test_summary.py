"""The file of how far an audit has come, and of its verdict."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from fedleak.audit.findings import not_tried
from fedleak.audit.summary import AuditSummary
from fedleak.errors import BadInput
from tests.audit.made_audit import INPUTS, an_answer

GOOD = an_answer(*INPUTS, [0.9, 0.8, 0.95, 0.85], [0.1, 0.2, 0.15, 0.1])
POOR = an_answer(*INPUTS, [0.1, 0.1, 0.1], [0.2, 0.1, 0.15])
TOLD = an_answer(1, "number of samples", [1.0, 1.0], [0.0, 0.0])


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    missing = not_tried(2, "shares of labels", "no time was left", setting="round 1")
    summary = AuditSummary(
        {"clients": 3}, {"torch": "2.12"}, "interrupted", "", True, 3.5, 4, ["a line"], "Net()",
        12.5, True, "it was", 0.97, [TOLD], [missing, GOOD], ["a note"],
    )  # fmt: skip
    summary.save(path)
    read = AuditSummary.load(path)
    # NaN is not equal to itself, so the texts are compared.
    assert repr(read) == repr(summary)
    assert read.verdict.overall == "leaks"
    assert read.not_tried == ["shares of labels: not tried: no time was left."]
    partly = replace(POOR, conclusive=False, note="no time was left for 3 of 8")
    assert AuditSummary(answers=[partly]).not_tried == ["inputs: no time was left for 3 of 8."]
    assert read.answer_to(1, "number of samples") == TOLD
    assert read.answer_to(*INPUTS) is None  # it is not final
    values = json.loads(path.read_text())
    assert values["verdict"]["overall"] == "leaks"
    assert values["unfinished"] == [[2, "shares of labels"], [3, "inputs"]]
    assert values["verdict"]["answers"][1]["answer"]["mean"] is None
    assert math.isnan(read.unfinished[0].answer.mean)


def test_what_is_unfinished_is_no_evidence() -> None:
    """An audit that has ended early never finds nothing."""
    done = AuditSummary(canary=True, answers=[TOLD, POOR])
    assert done.verdict.overall == "nothing found"
    missing = not_tried(*INPUTS, "the audit ended before")
    early = AuditSummary(canary=True, answers=[TOLD], unfinished=[missing])
    assert early.verdict.overall == "not proven"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "run"}, "Expected the summary of an audit in"),
        ({"status": "done"}, "Unknown value of `the summary.status` `done`"),
        ({"verdict": {"answers": 3}}, "Expected a list of answers, got `3`"),
        ({"verdict": {"answers": [{"rung": 1}]}}, "Expected an estimate, got nothing"),
        ({"used": "long"}, "to be a number, got `long`"),
        ({"notes": "one"}, "to be a list"),
    ],
)
def test_a_damaged_file(change: dict[str, object], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    AuditSummary(answers=[TOLD]).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadInput, match=sentence):
        AuditSummary.load(path)


@pytest.mark.parametrize("name", ["question", "answer", "gains", "perfect"])
def test_an_answer_that_lacks_something(name: str, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    AuditSummary(answers=[TOLD]).save(path)
    values = json.loads(path.read_text())
    del values["verdict"]["answers"][0][name]
    path.write_text(json.dumps(values))
    with pytest.raises(BadInput, match=f"in {path}"):
        AuditSummary.load(path)
