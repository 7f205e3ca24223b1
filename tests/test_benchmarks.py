"""The benchmarks in small: they run, and the ways that they compare do the same work.

No time is asserted. benchmarks/results.json has the figures.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import date
from inspect import signature
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import page, reference, run
from benchmarks.bandwidth import bandwidth_share, needed_bytes, weight_passes
from benchmarks.conditions import commit, conditions
from benchmarks.exact import (
    LOOK_EVERY,
    exact_seconds,
    exact_seconds_large,
    time_to_leak_dmlp,
    time_to_leak_lenet,
)
from benchmarks.matching import lenet_batched_speedup, mlp_matching_speedup
from benchmarks.measure import Figure, in_turns, median, ratios
from benchmarks.peers import compare
from benchmarks.recommender import (
    fedvae_attack_speedup,
    fedvae_round_peak_ratio,
    fedvae_round_ratio,
    fedvae_together_speedup,
    fedvae_users_peak_ratio,
)
from benchmarks.registry import BENCHMARKS, Benchmark
from benchmarks.sweep import sweep_two_process_speedup
from benchmarks.victims import large_victims, make_victims
from fedleak.attacks import IGA
from fedleak.attacks.base import SALT
from fedleak.attacks.matching.optimizers import OPTIMIZERS
from fedleak.models import SMLP, LeNet
from fedleak.runtime.seeds import derive_seed
from tests.federation.fakes import run_in_process

FAKE = Path(__file__).with_name("fake_run.py")
PRODUCTS = ("mm", "addmm", "mv", "addmv", "bmm", "baddbmm", "linear", "matmul")


def fake(**settings):
    """A command that stands in for a run; see fake_run.py for its settings."""

    def command(config: Path, folder: Path, resume: bool) -> list[str]:
        return [sys.executable, str(FAKE), str(config), str(folder), json.dumps(settings)]

    return command


class Products(TorchDispatchMode):
    """Counts the matrix products in which a tensor of so many numbers takes part."""

    def __init__(self):
        super().__init__()
        self.sizes = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in PRODUCTS:
            for value in args:
                if isinstance(value, torch.Tensor):
                    self.sizes[value.numel()] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("benchmark", "sides"),
    [
        (lambda: mlp_matching_speedup(iterations=1, repetitions=2), ("plain", "engine")),
        (
            lambda: lenet_batched_speedup(victims=2, iterations=1, repetitions=2),
            ("one_by_one", "together"),
        ),
        (
            lambda: sweep_two_process_speedup(
                cells=2, iterations=1, clients=3, repetitions=2, command=fake()
            ),
            ("one_process", "two_processes"),
        ),
    ],
    ids=["mlp", "lenet", "sweep"],
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


def test_the_bandwidth_that_counts_is_the_higher_one():
    figure = bandwidth_share(iterations=40, large=2**22, repetitions=1)
    details = figure.details
    highest = max(details["memory_gb_per_second"], details["cache_gb_per_second"])
    assert figure.value == pytest.approx(details["gb_per_second"] / highest)
    assert details["gb_per_second"] == pytest.approx(
        details["iterations_per_second"] * figure.setting["bytes_an_iteration"] / 1e9
    )


def test_one_user_is_compared_with_one_user():
    alone = fedvae_attack_speedup(iterations=20, repetitions=1, warm_up=1, small=True)
    assert alone.setting["users"] == 1
    assert set(alone.details) == {"plain_seconds", "engine_seconds"}
    together = fedvae_together_speedup(iterations=20, repetitions=1, users=3, whole=20, small=True)
    assert together.setting["users"] == 3
    assert {"one_by_one_seconds", "together_seconds", "whole_attack_f1"} <= set(together.details)
    assert "150 made-up users" in alone.setting["data"]


def test_a_round_and_its_peak_are_of_the_same_federation(monkeypatch):
    monkeypatch.setattr("fedleak.federation.engine.simulation.run_on_ray", run_in_process)
    seconds = fedvae_round_ratio(users=4, small=True, repetitions=2)
    assert seconds.value == pytest.approx(median(seconds.samples))
    assert len(seconds.samples) == 2
    assert seconds.details["federation_seconds"] > 0 < seconds.details["plain_seconds"]
    peak = fedvae_round_peak_ratio(users=4, small=True, repetitions=2)
    assert peak.value == peak.details["federation_gb"] / peak.details["plain_gb"]
    assert peak.setting == seconds.setting
    users = fedvae_users_peak_ratio(few=60, times=2, users=4, repetitions=1)
    assert 0 < users.value < 2
    assert users.setting["users_in_all"] == [60, 120]


def test_a_perceptron_shows_what_the_closed_form_of_2018_needs(monkeypatch):
    monkeypatch.delenv("FEDLEAK_DATA", raising=False)
    before = OPTIMIZERS["adam"]
    figure = time_to_leak_dmlp(victims=1, iterations=30, width=24, plain=1)
    assert OPTIMIZERS["adam"] is before
    assert figure.value > 0
    assert figure.details["analytic_ssim_min"] > 0.99 < figure.details["exact_nra_ssim_min"]
    assert figure.details["analytic_seconds"] > 0
    # NRA has found nothing after so few iterations, and that is said.
    assert figure.lower_bound
    assert figure.details["nra_reached"] == 0
    assert figure.details["nra_iterations"] == 30
    assert "DMLP 4x24 + PRECODE" in figure.setting["model"]


def test_iterations_until_the_image_leaks_are_counted(monkeypatch):
    monkeypatch.setattr("benchmarks.exact.LEAKED", -1.0)  # any image has leaked
    figure = time_to_leak_dmlp(victims=1, iterations=30, width=24, plain=1)
    assert not figure.lower_bound
    assert figure.details["nra_reached"] == 1
    assert figure.details["nra_iterations"] == LOOK_EVERY


def test_a_closed_form_that_does_not_reach_the_image_is_no_measurement(monkeypatch):
    monkeypatch.setattr("benchmarks.exact.LEAKED", 1.5)  # no image leaks
    with pytest.raises(RuntimeError, match=r"Expected exact to reach SSIM 1\.5"):
        time_to_leak_dmlp(victims=1, iterations=10, width=24, plain=1)


def test_a_convolutional_model_has_no_first_linear_layer_to_read():
    figure = time_to_leak_lenet(victims=1, iterations=10, plain=1)
    assert "analytic_seconds" not in figure.details
    assert figure.lower_bound


@pytest.mark.parametrize(("benchmark", "size"), [(exact_seconds, 32), (exact_seconds_large, 64)])
def test_the_closed_forms_seconds_tell_what_was_reached(benchmark, size, monkeypatch):
    monkeypatch.delenv("FEDLEAK_DATA", raising=False)
    figure = benchmark(victims=1, kinds=(SMLP,))
    assert figure.value == figure.details["smlp_seconds"] > 0
    assert figure.details["smlp_ssim_min"] > 0.999
    assert f"x{size}x{size}" in figure.setting["data"]
    assert "SMLP + PRECODE" in figure.setting["model"]


def test_sides_take_turns_after_a_call_that_is_not_timed():
    calls = []
    seconds = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    with pytest.raises(ValueError, match=r"Expected a warm-up of \['a'\], got \['b'\]"):
        in_turns({"a": int}, 1, {"b": int})


def test_a_ratio_is_of_the_pair_that_was_measured_together():
    # Work of the fast side is twice as much; the machine was half as fast during the second pair.
    assert ratios([8.0, 16.0], [1.0, 2.0], 2) == [16.0, 16.0]


@pytest.mark.parametrize("kind", [SMLP, LeNet])
def test_the_plain_loop_and_the_engine_reach_the_same_cost(kind):
    updates, knowledge, _ = make_victims(kind, 1)
    target, labels = tuple(updates[0].received.values()), knowledge[0].labels
    # The start that the engine draws, in the box in which it puts it.
    generator = torch.Generator().manual_seed(derive_seed(0, 1, 0, SALT))
    start = torch.randn(1, *knowledge[0].input_shape, generator=generator)
    start = start.clamp(*knowledge[0].bounds)
    found = reference.attack(
        knowledge[0].model, target, labels, start, knowledge[0].bounds, iterations=10
    )
    dummy = reference.dummy_gradient(knowledge[0].model, found, labels, {})
    cost = reference.cosine_distance(dummy, target).item()
    first = reference.dummy_gradient(knowledge[0].model, start, labels, {})
    assert cost < reference.cosine_distance(first, target).item()
    # The sign of a gradient near 0 is a matter of rounding, so not to the last digit.
    assert IGA(iterations=10)(updates, knowledge)[0].cost == pytest.approx(cost, rel=0.02)


def test_the_engine_reads_the_weights_as_often_as_is_counted():
    updates, knowledge, _ = make_victims(SMLP, 1)
    model = knowledge[0].model
    counts = []
    for iterations in (2, 5):
        with Products() as products:
            IGA(iterations=iterations)(updates, knowledge)
        counts.append(products.sizes)
    passes = weight_passes(model)
    modules = dict(model.named_modules())
    sizes = {name: modules[name].weight.numel() for name in passes}
    assert list(passes.values()) == [2, 4, 4]
    # Less would mean that the count flatters; more would be work that could be saved.
    read = {name: (counts[1][size] - counts[0][size]) / 3 for name, size in sizes.items()}
    assert all(read[name] >= passes[name] for name in passes), read
    assert needed_bytes(model) == 4 * sum(passes[name] * sizes[name] for name in passes)


def test_a_run_that_fails_is_no_measurement():
    with pytest.raises(RuntimeError, match="Expected better weather"):
        sweep_two_process_speedup(cells=2, iterations=1, clients=3, command=fake(fail="seed1"))


def run_with(monkeypatch, benchmarks, *arguments):
    """`make bench` with other benchmarks."""
    monkeypatch.setattr(run, "BENCHMARKS", benchmarks)
    monkeypatch.setattr(sys, "argv", ["run", *map(str, arguments)])
    run.main()


def made_up(value, **limits):
    """A benchmark whose figure is the value."""
    figure = Figure(
        value=value, unit="times", samples=[value - 1, value, value + 1], of="pairs",
        setting={"threads": 1},
    )  # fmt: skip
    return Benchmark(lambda: figure, **limits)


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


def test_a_benchmark_has_one_threshold():
    for limits in ({}, {"least": 1, "most": 2}):
        with pytest.raises(ValueError, match="Expected either `least` or `most`"):
            made_up(1.0, **limits)


def test_a_quick_try_writes_nothing_and_judges_nothing(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    run_with(monkeypatch, {"slow": made_up(2.0, least=3)}, "--quick", "--results", path)
    assert not path.exists()
    assert "too small to be a figure" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_the_arguments_of_a_quick_try_are_those_of_its_benchmark(name):
    signature(BENCHMARKS[name].measure).bind(**BENCHMARKS[name].quick)


def test_conditions_name_machine_commit_and_versions():
    found = conditions()
    assert found["machine"]["cores"] == os.cpu_count()
    assert found["machine"]["memory_gib"] * 2**30 == pytest.approx(
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), rel=0.05
    )
    assert found["machine"]["processor"]
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    date.fromisoformat(found["date"])


def test_the_commit_is_that_of_the_tree_and_says_when_it_is_modified(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.conditions.ROOT", tmp_path)
    assert commit() == "unknown"
    (tmp_path / "fedleak").mkdir()
    code = tmp_path / "fedleak" / "code.py"
    code.write_text("1")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    clean = commit()
    assert len(clean) == 10
    code.write_text("2")
    assert commit() == f"{clean} (modified)"


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
    results = {"figures": {name: record}, "earlier": {name: [old]}}
    text = page.rendered(page.PAGE.read_text(), results)
    assert (
        "300 iterations: a plain autograd loop (8.25 s) over the engine (1 s) | 8.25 times | "
        "7.25 to 9.25 (3) | at least 3 | 4.4 to 8.25 |" in text
    )
    assert "- Measured 2031-02-03, commit abc, P, 4 cores, 7.5 GiB, Linux" in text
    assert "- Earlier: 4.4; committed unknown, commit c, machine unknown; n\n" in text
    assert "| [exact_seconds](#exact_seconds) | not measured" in text
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


def test_without_the_peers_environment_it_says_how_to_make_it(monkeypatch, tmp_path):
    updates, knowledge, _ = make_victims(LeNet, 1)
    monkeypatch.setattr(compare, "INTERPRETER", tmp_path / "python")
    with pytest.raises(RuntimeError, match="make bench-peers"):
        compare.attack_with_breaching(updates[0], knowledge[0], iterations=1)


@pytest.mark.slow
@pytest.mark.skipif(not compare.INTERPRETER.exists(), reason="needs `make bench-peers` before")
def test_breaching_is_given_the_same_model_and_cost(monkeypatch):
    monkeypatch.delenv("FEDLEAK_DATA", raising=False)
    # Other gradients or another cost than fedleak's would raise.
    figure = compare.peer_breaching_speedup(victims=1, iterations=3, batched=2)
    assert figure.value > 0
    assert figure.setting["peer"]["breaching"] == "0.1.2"


def test_large_victims_are_grey_photographs_without_the_papers_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FEDLEAK_DATA", raising=False)
    data, name = large_victims()
    assert data.input_shape == (1, 64, 64)
    assert name.startswith("photos")
    pixels = data.train_set.images.double()
    assert len(data.train_set.labels.unique()) == data.num_classes == 8
    assert float(pixels.std()) > 0.1 * float(pixels.max())
