"""How a figure is measured, and what is recorded of it.

Every side of a comparison is measured alike: one call that is not timed, then the same number of
timed calls, the sides taking turns (A B A B ...). What slows the machine for a while then slows
both sides of a pair, so that the ratio of a pair is more stable than either time.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

REPETITIONS = 5

Work = Callable[[], object]
Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured figure.

    Args:
        value: the figure.
        unit: what it counts.
        samples: the single measurements of which ``value`` is the median.
        of: what was repeated to get the samples.
        setting: data, model, iterations, threads and whatever else decides the figure.
        details: other quantities of the same measurement, such as the seconds of each side.
        lower_bound: whether the true value is at least this, as one side was stopped early.
    """

    value: float
    unit: str
    samples: Sequence[float]
    of: str
    setting: Facts
    details: Facts = field(default_factory=dict)
    lower_bound: bool = False

    def record(self) -> Facts:
        """The figure as results.json holds it: n and spread instead of the single samples."""
        return {
            "value": self.value,
            "unit": self.unit,
            "lower_bound": self.lower_bound,
            "n": len(self.samples),
            "n_of": self.of,
            "spread": {"min": min(self.samples), "max": max(self.samples)},
            "setting": self.setting,
            "details": self.details,
        }


def seconds_of(work: Work) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(
    sides: Mapping[str, Work],
    repetitions: int = REPETITIONS,
    warm_up: Mapping[str, Work] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each side, the sides taking turns.

    Args:
        sides: name -> what is timed.
        repetitions: number of timed calls of each side.
        warm_up: name -> a shorter form of the side for the call that is not timed, for the same
            sides. If None, the sides themselves.

    Returns:
        Name -> the seconds of its timed calls, in their order.

    Raises:
        ValueError: if ``warm_up`` does not name the same sides.
    """
    warm_up = sides if warm_up is None else warm_up
    if set(warm_up) != set(sides):
        raise ValueError(f"Expected a warm-up of {sorted(sides)}, got {sorted(warm_up)}.")
    for work in warm_up.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, work in sides.items():
            seconds[name].append(seconds_of(work))
    return seconds


def ratios(slow: Sequence[float], fast: Sequence[float], factor: float = 1.0) -> list[float]:
    """The ratio of every pair of turns.

    Args:
        slow: seconds of the side in the numerator.
        fast: seconds of the other side, as many.
        factor: how much more work the fast side does in a call than the slow side.
    """
    return [one / other * factor for one, other in zip(slow, fast, strict=True)]


median = statistics.median
