"""The benchmarks of the matching engine in small. No time is asserted."""

import pytest

from benchmarks.matching import lenet_batched_speedup, mlp_matching_speedup


@pytest.mark.parametrize(
    ("benchmark", "sides"),
    [
        (lambda: mlp_matching_speedup(iterations=1, repetitions=2), ("plain", "engine")),
        (
            lambda: lenet_batched_speedup(victims=2, iterations=1, repetitions=2),
            ("one_by_one", "together"),
        ),
    ],
    ids=["mlp", "lenet"],
)
def test_a_benchmark_records_both_sides_and_its_setting(benchmark, sides):
    record = benchmark().record()
    assert record["value"] > 0
    assert record["n"] == 2
    assert record["spread"]["min"] <= record["value"] <= record["spread"]["max"]
    assert {f"{side}_seconds" for side in sides} <= set(record["details"])
    assert record["setting"]["data"].startswith("photos")
    assert "untrained" in record["setting"]["model"]
    assert {"attack", "batch_size", "labels", "iterations", "threads"} <= set(record["setting"])
