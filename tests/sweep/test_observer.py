"""The observers of a sweep."""

from pathlib import Path
from typing import Any

from fedleak.sweep import SweepObserver, SweepProgress
from tests.sweep.sweeps import NAMES, sweep


class Counts(SweepObserver):
    """Overrides a single event."""

    def __init__(self) -> None:
        self.progress: list[SweepProgress] = []

    def progressed(self, progress: SweepProgress) -> None:
        self.progress.append(progress)


def test_a_subclass_overrides_only_the_events_that_it_handles(tmp_path: Path) -> None:
    observer = Counts()
    summary = sweep(tmp_path, observer)
    assert summary["status"] == "complete"
    first, last = observer.progress[0], observer.progress[-1]
    assert (first.cells, first.complete, first.failed, first.left) == (4, 0, 0, None)
    assert list(first.running) == [NAMES[0]]
    assert (last.complete, last.victims, last.running, last.left) == (4, 12, {}, 0.0)
    seconds = [progress.seconds for progress in observer.progress]
    assert seconds == sorted(seconds)


def test_every_event_is_reported_to_the_observer(tmp_path: Path) -> None:
    events: list[str] = []
    kinds = [name for name in vars(SweepObserver) if not name.startswith("_")]

    def recording(name: str) -> Any:
        return lambda *_: events.append(name)

    observer = SweepObserver()
    for name in kinds:
        setattr(observer, name, recording(name))
    sweep(tmp_path, observer)
    assert set(events) == set(kinds)
    assert (events[0], events[-1]) == ("sweep_started", "sweep_ended")
