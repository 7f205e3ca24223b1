"""The benchmarks and their thresholds."""

from inspect import signature

import pytest

from benchmarks.registry import BENCHMARKS
from tests.benchmarks.figures import made_up


def test_a_benchmark_has_one_threshold():
    for limits in ({}, {"least": 1, "most": 2}):
        with pytest.raises(ValueError, match="Expected either `least` or `most`"):
            made_up(1.0, **limits)


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_the_arguments_of_a_quick_try_are_those_of_its_benchmark(name):
    signature(BENCHMARKS[name].measure).bind(**BENCHMARKS[name].quick)
