"""Events of an audit reach every observer."""

from fedleak.audit.progress import AuditObserver, AuditObservers
from tests.audit.made_audit import INPUTS, an_answer


def test_every_event_reaches_all_observers_in_order() -> None:
    heard: list[tuple[str, str]] = []

    class Listener(AuditObserver):
        def __init__(self, name: str) -> None:
            self.name = name

        def said(self, sentence: str) -> None:
            heard.append((self.name, sentence))

        def audit_ended(self, status: str) -> None:
            heard.append((self.name, status))

    both = AuditObservers([Listener("a"), Listener("b")])
    both.said("hello")
    both.app_started(4, None)
    both.update_kept("r0001-c0000")
    both.app_ended(1, 2.0)
    both.attacks_started(3, 60.0, 0.0)
    both.stage_started("inputs", 3.0)
    both.canary_tried(True)
    both.progressed("iga on r0001-c0000")
    both.victim_attacked(1, 4)
    both.answered(an_answer(*INPUTS, [0.9, 0.9], [0.1, 0.1]))
    both.audit_ended("complete")
    assert heard == [("a", "hello"), ("b", "hello"), ("a", "complete"), ("b", "complete")]
