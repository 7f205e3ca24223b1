"""The benchmarks in small: they run, and the ways that they compare do the same work.

No time is asserted. What a benchmark measures stands in benchmarks/results.json.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import reference, run
from benchmarks.bandwidth import bandwidth_share, needed_bytes, weight_passes
from benchmarks.common import large_victims, make_victims
from benchmarks.exact import exact_seconds, exact_seconds_large, time_to_leak_speedup
from benchmarks.matching import lenet_batched_speedup, mlp_matching_speedup
from benchmarks.peers import compare
from benchmarks.recommender import (
    fedvae_attack_seconds,
    fedvae_round_peak_gb,
    fedvae_round_seconds,
    fedvae_users_peak_ratio,
)
from benchmarks.sweep import sweep_two_process_speedup
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
    "benchmark",
    [
        lambda: mlp_matching_speedup(iterations=1),
        lambda: lenet_batched_speedup(victims=2, iterations=1),
        lambda: bandwidth_share(iterations=40, large=2**22),
        lambda: sweep_two_process_speedup(cells=2, iterations=1, clients=3, command=fake()),
    ],
    ids=["mlp", "lenet", "bandwidth", "sweep"],
)
def test_a_benchmark_tells_a_ratio_and_its_setting(benchmark):
    entry = benchmark()
    assert set(entry) == {"value", "unit", "setting"}
    assert entry["value"] > 0
    for word in ("photos", "untrained", "batch size 1", "iterations", "thread", "compared with"):
        assert word in entry["setting"]


def test_the_recommenders_benchmarks_tell_their_setting(monkeypatch):
    monkeypatch.setattr("fedleak.federation.engine.simulation.run_on_ray", run_in_process)
    for entry in (
        fedvae_attack_seconds(iterations=20, plain=1, small=True),
        fedvae_round_seconds(users=4, small=True), fedvae_round_peak_gb(users=4, small=True),
    ):  # fmt: skip
        assert set(entry) == {"value", "unit", "setting"}
        assert entry["value"] > 0
        for word in ("FedVAE", "150 made-up users", "plain", "times"):
            assert word in entry["setting"]
    entry = fedvae_users_peak_ratio(few=60, times=2, users=4)
    assert 0 < entry["value"] < 2
    assert "120 made-up users and 60, 2,000 items" in entry["setting"]


def test_the_closed_forms_benchmark_tells_its_setting(monkeypatch):
    monkeypatch.delenv("FEDLEAK_DATA", raising=False)
    before = OPTIMIZERS["adam"]
    entry = time_to_leak_speedup(iterations=30, width=24, plain=1)
    assert OPTIMIZERS["adam"] is before
    assert set(entry) == {"value", "unit", "setting"}
    assert entry["value"] > 0
    for word in ("DMLP 4x24 + PRECODE", "photos", "untrained", "labels known", "30 of 30"):
        assert word in entry["setting"]


@pytest.mark.parametrize(("benchmark", "size"), [(exact_seconds, 32), (exact_seconds_large, 64)])
def test_the_closed_forms_seconds_tell_what_was_reached(benchmark, size, monkeypatch):
    monkeypatch.delenv("FEDLEAK_DATA", raising=False)
    entry = benchmark(victims=1, kinds=(SMLP,))
    assert entry["value"] > 0
    for word in ("PRECODE", "photos", f"x{size}x{size}", "median of 1 victims: SMLP", "SSIM 1.000"):
        assert word in entry["setting"]


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


def test_results_are_merged_into_the_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    path.write_text('{"earlier": {"value": 1}}')
    entry = {"value": 2.5, "unit": "times", "setting": "small"}
    monkeypatch.setattr(run, "BENCHMARKS", {"now": lambda: entry})
    monkeypatch.setattr(sys, "argv", ["run", "--results", str(path)])
    run.main()
    assert json.loads(path.read_text()) == {"earlier": {"value": 1}, "now": entry}
    assert "now: 2.50 times" in capsys.readouterr().out


def test_the_results_kept_are_those_of_known_benchmarks():
    results = json.loads(run.RESULTS.read_text())
    assert set(results) <= set(run.BENCHMARKS | run.PEERS)
    for entry in results.values():
        assert set(entry) == {"value", "unit", "setting"}


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
    entry = compare.peer_breaching_speedup(victims=1, iterations=3, batched=2)
    assert entry["value"] > 0
    assert "breaching 0.1.2" in entry["setting"]


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
