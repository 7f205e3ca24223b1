"""What happens in a run, for whoever wants to watch: a display, TensorBoard, a test."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedleak.attacks.base import Progress, Reconstruction
from fedleak.runtime.interrupts import delay_interrupts
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate


class Observer:
    """Told of every event of a run; a subclass overrides what it cares about."""

    def data_loaded(self, description: str) -> None:
        """The data are there; the description tells their counts in a line."""

    def federation_started(self, model: str, clients: int, first: int, rounds: int) -> None:
        """A federation with so many clients a round begins with round ``first`` of ``rounds``."""

    def client_answered(
        self, model: str, round_: int, client: int, metrics: Mapping[str, float] | None
    ) -> None:
        """A client's reply of a training round has come; without metrics, it failed."""

    def client_failed(self, model: str, round_: int, client: int, reason: str) -> None:
        """A client raised an exception or did not answer in time."""

    def round_evaluated(self, model: str, round_: int, metrics: Mapping[str, float]) -> None:
        """The global model was evaluated; round 0 is the untrained one."""

    def attack_started(self, attack: str, model: str, victims: int, done: int) -> None:
        """An attack on this many updates begins, of which some are done from before."""

    def attack_progressed(self, attack: str, model: str, progress: Progress) -> None:
        """The updates under attack have come this far."""

    def victim_attacked(
        self,
        attack: str,
        model: str,
        update: InterceptedUpdate,
        truth: GroundTruth | None,
        reconstruction: Reconstruction,
        rows: Sequence[Mapping[str, Any]],
    ) -> None:
        """An update has been attacked and scored; ``rows`` are those of results.csv."""

    def attack_skipped(self, attack: str, model: str, reason: str) -> None:
        """An attack makes no sense on a model, or failed on an update."""

    def run_ended(self, status: str) -> None:
        """The run is over; ``status`` is that of summary.json."""


class Observers(Observer):
    """Passes every event on to several observers, in their order; no signal comes in between."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        for name in [name for name in vars(Observer) if not name.startswith("_")]:
            setattr(self, name, _each([getattr(observer, name) for observer in observers]))


def _each(methods: Sequence[Any]) -> Any:
    def call(*args: Any, **kwargs: Any) -> None:
        with delay_interrupts():
            for method in methods:
                method(*args, **kwargs)

    return call
