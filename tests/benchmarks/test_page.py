"""docs/benchmarks.md shows what results.json holds."""

import json

import pytest

from benchmarks import page
from benchmarks.registry import BENCHMARKS
from tests.benchmarks.figures import made_up


def test_the_page_agrees_with_the_results():
    results = json.loads(page.RESULTS.read_text())
    text = page.PAGE.read_text()
    assert page.rendered(text, results) == text


def test_the_page_explains_every_figure():
    text = page.PAGE.read_text()
    for name in BENCHMARKS:
        words = text.partition(f"### {name}\n")[2].partition(f"<!-- generated: {name} -->")[0]
        assert len(words.split()) > 3
    assert set(page.COMPARED) == set(BENCHMARKS)


def test_the_page_shows_what_the_results_hold():
    record = made_up(8.25, least=3).measure().record() | {
        "setting": {"iterations": 300, "threads": 1},
        "details": {"plain_seconds": 8.25, "engine_seconds": 1.0},
        "threshold": {"least": 3},
        "measured": {
            "date": "2031-02-03", "commit": "abc", "load_average": 0.5, "versions": {"torch": "9"},
            "machine": {"cores": 4, "processor": "P", "memory_gib": 7.5, "system": "Linux"},
        },
    }  # fmt: skip
    old = {"value": 4.4, "committed": "unknown", "commit": "c", "machine": "unknown", "note": "n"}
    name = "mlp_matching_speedup"
    results = {"figures": {name: record}, "earlier": {name: [old], "exact_seconds": [old]}}
    text = page.rendered(page.PAGE.read_text(), results)
    assert (
        "300 iterations: a plain autograd loop (8.25 s) over the engine (1 s) | 8.25 times | "
        "7.25 to 9.25 (3) | at least 3 | 4.4 to 8.25 |" in text
    )
    assert "- Measured 2031-02-03, commit abc, P, 4 cores, 7.5 GiB, Linux" in text
    assert "- Earlier: 4.4; committed unknown, commit c, machine unknown; n\n" in text
    line = next(line for line in text.splitlines() if line.startswith("| [exact_seconds]"))
    assert "not measured with the current procedure yet" in line
    assert line.endswith("| 4.4 |")
    with pytest.raises(ValueError, match="Expected one block of each of"):
        page.rendered(text.replace("<!-- generated: exact_seconds -->", ""), results)


@pytest.mark.parametrize(
    ("reached", "words"), [(0, "never within 7,000 iterations"), (2, "2 of 3 victims within 7,000")]
)
def test_the_page_says_when_nra_never_gets_there(reached, words):
    record = {
        "value": 12.0, "unit": "times", "lower_bound": True, "n": 3,
        "setting": {"ssim": 0.9, "iterations": 7000},
        "details": {
            "nra_reached": reached, "nra_seconds": 30.0, "nra_best_ssim": 0.71,
            "exact_nra_seconds": 2.5,
        },
    }  # fmt: skip
    assert words in page.compared("time_to_leak_lenet", record)
    assert page.value_text(record) == "at least 12 times"
