"""Which benchmarks there are, what each figure means, and the threshold that it must keep."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.bandwidth import bandwidth_share
from benchmarks.exact import (
    exact_seconds,
    exact_seconds_large,
    time_to_leak_dmlp,
    time_to_leak_lenet,
)
from benchmarks.flower_rounds import audit_round_overhead, malicious_round_overhead
from benchmarks.matching import lenet_batched_speedup, mlp_matching_speedup
from benchmarks.measure import Figure
from benchmarks.peers.compare import peer_breaching_speedup, peer_breaching_speedup_smlp
from benchmarks.recommender import (
    fedvae_attack_speedup,
    fedvae_round_peak_ratio,
    fedvae_round_ratio,
    fedvae_together_speedup,
    fedvae_users_peak_ratio,
)
from benchmarks.sweep import sweep_two_process_speedup
from benchmarks.workers import two_worker_speedup


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, and what is expected of its figure.

    Args:
        measure: measures it.
        least: the lowest value that passes, of a figure that should be high.
        most: the highest value that passes, of a figure that should be low.
        quick: arguments of ``measure`` with which it takes seconds and measures nothing of use.
        peer: whether it needs the environment that ``make bench-peers`` makes.
    """

    measure: Callable[..., Figure]
    least: float | None = None
    most: float | None = None
    quick: Mapping[str, Any] = field(default_factory=dict)
    peer: bool = False

    def __post_init__(self) -> None:
        if (self.least is None) == (self.most is None):
            raise ValueError("Expected either `least` or `most`, got both or neither.")

    @property
    def threshold(self) -> dict[str, float]:
        """The threshold as results.json holds it."""
        return {"least": self.least} if self.least is not None else {"most": self.most or 0.0}


# Thresholds leave room for another machine: what
# misses one has lost an optimisation, not a few per cent.
BENCHMARKS: dict[str, Benchmark] = {
    "mlp_matching_speedup": Benchmark(
        mlp_matching_speedup, least=2, quick={"iterations": 20, "repetitions": 1}
    ),
    "lenet_batched_speedup": Benchmark(
        lenet_batched_speedup,
        least=3,
        quick={"victims": 4, "iterations": 20, "repetitions": 1},
    ),
    # Half of the lowest value on three machines, 0.109 to 0.371: where the weights fit into a large
    # cache, PyTorch's products of matrix and vector use a third of that cache's bandwidth alone.
    "bandwidth_share": Benchmark(
        bandwidth_share, least=0.05, quick={"iterations": 40, "large": 2**24, "repetitions": 1}
    ),
    "sweep_two_process_speedup": Benchmark(
        sweep_two_process_speedup, least=1.4, quick={"iterations": 10, "repetitions": 1}
    ),
    "two_worker_speedup": Benchmark(
        two_worker_speedup, least=1.7, quick={"victims": 2, "iterations": 10, "repetitions": 1}
    ),
    "time_to_leak_dmlp": Benchmark(
        time_to_leak_dmlp, least=8, quick={"victims": 1, "iterations": 50, "plain": 2}
    ),
    "time_to_leak_lenet": Benchmark(
        time_to_leak_lenet, least=4, quick={"victims": 1, "iterations": 50, "plain": 2}
    ),
    "exact_seconds": Benchmark(exact_seconds, most=12, quick={"victims": 1}),
    "exact_seconds_large": Benchmark(exact_seconds_large, most=30, quick={"victims": 1}),
    "fedvae_attack_speedup": Benchmark(
        fedvae_attack_speedup, least=2, quick={"iterations": 10, "repetitions": 1, "small": True}
    ),
    "fedvae_together_speedup": Benchmark(
        fedvae_together_speedup,
        least=1.2,
        quick={"iterations": 10, "repetitions": 1, "whole": 10, "small": True},
    ),
    "fedvae_round_ratio": Benchmark(
        fedvae_round_ratio, most=5, quick={"users": 4, "small": True, "repetitions": 2}
    ),
    "fedvae_round_peak_ratio": Benchmark(
        fedvae_round_peak_ratio, most=5, quick={"users": 4, "small": True, "repetitions": 2}
    ),
    "fedvae_users_peak_ratio": Benchmark(
        fedvae_users_peak_ratio,
        most=1.3,
        quick={"few": 60, "times": 2, "users": 4, "repetitions": 1},
    ),
    "malicious_round_overhead": Benchmark(
        malicious_round_overhead,
        most=1.05,
        quick={"clients": 2, "images": 40, "rounds": 1, "repetitions": 1},
    ),
    "audit_round_overhead": Benchmark(
        audit_round_overhead,
        most=1.5,
        quick={"clients": 2, "images": 40, "rounds": 1, "repetitions": 1},
    ),
    "peer_breaching_speedup": Benchmark(
        peer_breaching_speedup,
        least=0.8,
        quick={"victims": 1, "iterations": 20, "batched": 2},
        peer=True,
    ),
    "peer_breaching_speedup_smlp": Benchmark(
        peer_breaching_speedup_smlp,
        least=4,
        quick={"victims": 1, "iterations": 20, "batched": 2},
        peer=True,
    ),
}  # fmt: skip
