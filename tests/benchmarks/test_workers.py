"""The benchmark of Ray's workers in small. No time is asserted."""

import pytest

from benchmarks.measure import median
from benchmarks.workers import two_worker_speedup


@pytest.mark.slow
def test_both_sides_are_timed():
    figure = two_worker_speedup(victims=2, iterations=5, repetitions=2)
    assert figure.value == pytest.approx(median(figure.samples))
    assert figure.details["one_worker_seconds"] > 0 < figure.details["two_workers_seconds"]
