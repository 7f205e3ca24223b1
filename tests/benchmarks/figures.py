"""Figures made up for the tests."""

from benchmarks.measure import Figure
from benchmarks.registry import Benchmark


def made_up(value, **limits):
    """A benchmark whose figure is the value."""
    figure = Figure(
        value=value, unit="times", samples=[value - 1, value, value + 1], of="pairs",
        setting={"threads": 1},
    )  # fmt: skip
    return Benchmark(lambda: figure, **limits)
