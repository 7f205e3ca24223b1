"""`make bench`: what it writes, and when it fails."""

import json
import sys

import pytest

from benchmarks import run
from benchmarks.registry import BENCHMARKS
from tests.benchmarks.figures import made_up


def run_with(monkeypatch, benchmarks, *arguments):
    """`make bench` with other benchmarks."""
    monkeypatch.setattr(run, "BENCHMARKS", benchmarks)
    monkeypatch.setattr(sys, "argv", ["run", *map(str, arguments)])
    run.main()


def test_results_are_merged_into_the_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    path.write_text('{"figures": {"earlier": {"value": 1}}, "earlier": {"now": []}}')
    run_with(monkeypatch, {"now": made_up(2.5, least=2)}, "--results", path)
    results = json.loads(path.read_text())
    assert results["figures"]["earlier"] == {"value": 1}
    assert results["earlier"] == {"now": []}
    now = results["figures"]["now"]
    assert now["value"] == 2.5
    assert now["spread"] == {"min": 1.5, "max": 3.5}
    assert (now["n"], now["n_of"]) == (3, "pairs")
    assert now["threshold"] == {"least": 2}
    assert now["setting"] == {"threads": 1}
    assert set(now["measured"]) == {"date", "commit", "machine", "load_average", "versions"}
    assert "now: 2.5 times (1.5 to 3.5, 3 pairs)" in capsys.readouterr().out


def test_each_figure_that_misses_its_threshold_is_named_and_the_exit_status_is_1(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    path = tmp_path / "results.json"
    benchmarks = {
        "slow": made_up(2.0, least=3), "large": made_up(7.0, most=5),
        "fine": made_up(4.0, least=3), "small": made_up(4.0, most=5),
        "broken": made_up(float("nan"), least=3),
    }  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        run_with(monkeypatch, benchmarks, "--results", path)
    assert stopped.value.code == 1
    assert capsys.readouterr().err.splitlines() == [
        "slow is 2, below its threshold of 3.",
        "large is 7, above its threshold of 5.",
        "broken is nan, below its threshold of 3.",
    ]
    # What was measured is kept all the same.
    assert set(json.loads(path.read_text())["figures"]) == set(benchmarks)


def test_a_miss_on_a_busy_machine_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.getloadavg", lambda: (8.36, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(SystemExit):
        run_with(
            monkeypatch, {"slow": made_up(2.0, least=3)}, "--results", tmp_path / "results.json"
        )
    assert capsys.readouterr().err == (
        "slow is 2, below its threshold of 3; "
        "the machine was busy (load average 8.36 on 2 cores).\n"
    )


def test_a_quick_try_writes_nothing_and_judges_nothing(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    run_with(monkeypatch, {"slow": made_up(2.0, least=3)}, "--quick", "--results", path)
    assert not path.exists()
    assert "too small to be a figure" in capsys.readouterr().out


def test_the_results_kept_are_those_of_known_benchmarks():
    results = json.loads(run.RESULTS.read_text())
    assert set(results) == {"figures", "earlier"}
    assert set(results["figures"]) | set(results["earlier"]) <= set(BENCHMARKS)
    for name, record in results["figures"].items():
        assert record["threshold"] == BENCHMARKS[name].threshold
        assert record["spread"]["min"] <= record["value"] <= record["spread"]["max"]
        assert record["measured"]["machine"]["cores"] > 0
        assert "modified" not in record["measured"]["commit"]
    for records in results["earlier"].values():
        for record in records:
            assert set(record) == {"value", "committed", "commit", "machine", "note"}
