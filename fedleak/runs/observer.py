"""Events of a run and the interface of their observers: a display, TensorBoard, figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedleak.attacks.base import Progress, Reconstruction
from fedleak.runs.spending import SpentRow
from fedleak.runtime.interrupts import delay_interrupts
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate


class Observer:
    """Is notified of every event of a run; a subclass overrides the methods that it needs."""

    def data_loaded(self, description: str) -> None:
        """The data set was loaded; the description is one line with its counts."""

    def federation_started(self, model: str, clients: int, first: int, rounds: int) -> None:
        """A federation starts at round ``first`` of ``rounds``, with ``clients`` per round."""

    def client_answered(
        self, model: str, round_: int, client: int, metrics: Mapping[str, float] | None
    ) -> None:
        """A client's reply in a training round arrived; ``metrics`` is None if it failed."""

    def client_failed(self, model: str, round_: int, client: int, reason: str) -> None:
        """A client raised an exception or did not answer in time."""

    def round_evaluated(self, model: str, round_: int, metrics: Mapping[str, float]) -> None:
        """The global model was evaluated; round 0 is the untrained model."""

    def privacy_spent(self, model: str, round_: int, rows: Sequence[SpentRow]) -> None:
        """What the clients of a round have spent of their privacy; see ``privacy.csv``."""

    def attack_started(self, attack: str, model: str, victims: int, done: int) -> None:
        """An attack on ``victims`` updates starts; ``done`` of them were attacked earlier."""

    def attack_progressed(self, attack: str, model: str, progress: Progress) -> None:
        """The attack reports its progress on the current updates."""

    def victim_attacked(
        self,
        attack: str,
        model: str,
        update: InterceptedUpdate,
        truth: GroundTruth | None,
        reconstruction: Reconstruction,
        rows: Sequence[Mapping[str, Any]],
    ) -> None:
        """An update was attacked and scored; ``rows`` are its rows of results.csv."""

    def attack_skipped(self, attack: str, model: str, reason: str) -> None:
        """An attack does not apply to a model, or failed on an update."""

    def run_ended(self, status: str) -> None:
        """The run ended; ``status`` is that of summary.json."""


class Observers(Observer):
    """Passes every event to several observers in order; interrupts are delayed until all have it.

    Args:
        observers: the observers.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        for name in [name for name in vars(Observer) if not name.startswith("_")]:
            setattr(self, name, _each([getattr(observer, name) for observer in observers]))


def _each(methods: Sequence[Any]) -> Any:
    def call(*args: Any, **kwargs: Any) -> None:
        with delay_interrupts():
            for method in methods:
                method(*args, **kwargs)

    return call
