"""The benchmarks of a Flower app's rounds in small. No time is asserted."""

import pytest

from benchmarks.flower_rounds import audit_round_overhead, malicious_round_overhead
from benchmarks.measure import median
from tests.audit.apps import in_process

SMALL = {"clients": 2, "images": 40, "rounds": 2, "repetitions": 2, "engine": in_process}


@pytest.mark.parametrize("measure", [malicious_round_overhead, audit_round_overhead])
def test_rounds_of_both_sides_are_timed(measure):
    figure = measure(**SMALL)
    assert figure.value == pytest.approx(median(figure.samples))
    assert len(figure.samples) == 2
    assert figure.details["plain_round_seconds"] > 0 < figure.details["listening_round_seconds"]
    assert figure.setting["images_of_a_client"] == 40
