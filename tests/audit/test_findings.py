"""What an audit has found so far, in memory and in its files."""

import math
from pathlib import Path

import pytest
from torch import nn

from fedleak.audit.canary import Canary
from fedleak.audit.findings import Findings, not_tried
from fedleak.audit.folder import AuditFolder
from fedleak.audit.summary import AuditSummary
from fedleak.errors import BadInput
from tests.audit.made_audit import INPUTS, PLAN, a_config, an_answer, attacked

GOOD = an_answer(*INPUTS, [0.9, 0.8], [0.1, 0.1])


def opened(path: Path) -> AuditFolder:
    folder = AuditFolder(path)
    folder.open(a_config(), resume=path.exists(), overwrite=False)
    return folder


def test_what_is_found_is_read_again(tmp_path: Path) -> None:
    folder = opened(tmp_path / "audit")
    findings = Findings(folder)
    findings.plan(PLAN)
    one, two = attacked("r0001-c0000"), attacked("r0001-c0001", supported=False)
    findings.add_attacked(*INPUTS, one, an_answer(*INPUTS, [0.9], [0.1]))
    findings.add_attacked(*INPUTS, two)
    assert list(findings.scores(*INPUTS)) == ["r0001-c0000", "r0001-c0001"]
    summary = AuditSummary.load(folder.summary)
    assert [answer.question for answer in summary.unfinished] == [name for _, name in PLAN]
    assert summary.unfinished[-1].answer.n == 1  # the answer so far
    again = Findings(opened(folder.path), summary)
    read = again.scores(*INPUTS)
    assert read["r0001-c0000"].values == one.score.values
    assert not read["r0001-c0001"].supported
    again.plan(PLAN)
    again.add_answer(*INPUTS, GOOD)
    again.add_answer(*PLAN[1], None)  # it does not apply
    assert [answer.question for answer in again.summary.unfinished] == ["number of samples"]
    assert again.summary.answer_to(*INPUTS) == GOOD


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    findings = Findings()
    findings.add_attacked(*INPUTS, attacked("r0001-c0000"))
    findings.set_canary(Canary(True, "it was", 0.99, attacked("canary", samples=1)))
    findings.add_answer(*INPUTS, GOOD)
    assert findings.summary.verdict.overall == "leaks"
    assert list(tmp_path.iterdir()) == []


def test_the_budget_of_an_earlier_part_is_subtracted() -> None:
    findings = Findings(summary=AuditSummary(used=40.0))
    findings.begin(100.0)
    assert findings.left == pytest.approx(60.0, abs=1.0)
    findings.save()
    assert findings.summary.used == pytest.approx(40.0, abs=1.0)
    findings.begin(10.0)
    assert findings.left == 0.0


def test_what_is_asked_again() -> None:
    findings = Findings()
    findings.set_canary(Canary(False, "it was not", 0.4))
    missing = not_tried(2, "shares of labels", "no time was left")
    for answer in (missing, GOOD):
        findings.add_answer(answer.rung, answer.question, answer)
    findings.ask_again()
    assert findings.summary.answers == [GOOD]
    assert findings.summary.canary is None
    findings.set_canary(Canary(True, "it was", 0.99))
    findings.ask_again()
    assert findings.summary.canary is True


def test_the_model_stays_the_same() -> None:
    findings = Findings()
    findings.check_model(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1)))
    findings.check_model(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1)))
    with pytest.raises(BadInput, match="started again, makes another one"):
        findings.check_model(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)))


def test_an_answer_that_was_not_tried() -> None:
    answer = not_tried(*INPUTS, "no time was left", setting="round 1")
    assert answer.status == "not tried"
    assert answer.sentence == "inputs: not tried: no time was left."
    assert answer.setting == "round 1"
    assert math.isnan(answer.share)
