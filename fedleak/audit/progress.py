"""Events of an audit, and the interface of their observers."""

from collections.abc import Sequence
from typing import Any

from fedleak.audit.verdict import Answer
from fedleak.runtime.interrupts import delay_interrupts


class AuditObserver:
    """Is told what an audit does; a subclass overrides the methods that it needs."""

    def app_started(self, clients: int, rounds: int | None) -> None:
        """The app's own training starts; ``rounds`` is None where the app does not tell it."""

    def update_kept(self, key: str) -> None:
        """An update was received, such as ``r0001-c0003``; called in the server's thread."""

    def app_ended(self, updates: int, seconds: float) -> None:
        """The app's own training has ended, after ``seconds``, with as many updates kept."""

    def attacks_started(self, stages: int, budget: float, used: float) -> None:
        """The attacks start, with ``used`` of ``budget`` seconds gone in an earlier part."""

    def stage_started(self, name: str, seconds: float) -> None:
        """The canary, or a question, is begun.

        Args:
            name: what is begun.
            seconds: its share of the budget; 0 if it needs no attack that takes long.
        """

    def canary_tried(self, reconstructed: bool) -> None:
        """The audit's own client was attacked."""

    def progressed(self, text: str) -> None:
        """What is being done, in a few words."""

    def victim_attacked(self, done: int, victims: int) -> None:
        """The inputs of another update were attacked, ``done`` of ``victims`` by now."""

    def answered(self, answer: Answer) -> None:
        """A question was answered, or is not tried."""

    def said(self, sentence: str) -> None:
        """What a reader should know of the audit's course."""

    def audit_ended(self, status: str) -> None:
        """The audit ended; ``status`` is that of summary.json."""


class AuditObservers(AuditObserver):
    """Passes every event to several observers in order; interrupts are delayed until all have it.

    Args:
        observers: the observers.
    """

    def __init__(self, observers: Sequence[AuditObserver]) -> None:
        for name in [name for name in vars(AuditObserver) if not name.startswith("_")]:
            setattr(self, name, _each([getattr(observer, name) for observer in observers]))


def _each(methods: Sequence[Any]) -> Any:
    def call(*args: Any) -> None:
        with delay_interrupts():
            for method in methods:
                method(*args)

    return call
