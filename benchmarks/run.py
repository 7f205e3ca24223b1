"""``make bench``: run the benchmarks and write benchmarks/results.json.

``make bench-peers`` runs those that need a peer's environment besides.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.bandwidth import bandwidth_share
from benchmarks.common import Entry
from benchmarks.exact import exact_seconds, exact_seconds_large, time_to_leak_speedup
from benchmarks.matching import lenet_batched_speedup, mlp_matching_speedup
from benchmarks.peers.compare import peer_breaching_speedup, peer_breaching_speedup_smlp
from benchmarks.recommender import (
    fedvae_attack_seconds,
    fedvae_round_peak_gb,
    fedvae_round_seconds,
    fedvae_users_peak_ratio,
)
from benchmarks.sweep import sweep_two_process_speedup

BENCHMARKS: dict[str, Callable[[], Entry]] = {
    "mlp_matching_speedup": mlp_matching_speedup,
    "lenet_batched_speedup": lenet_batched_speedup,
    "bandwidth_share": bandwidth_share,
    "sweep_two_process_speedup": sweep_two_process_speedup,
    "time_to_leak_speedup": time_to_leak_speedup,
    "exact_seconds": exact_seconds,
    "exact_seconds_large": exact_seconds_large,
    "fedvae_attack_seconds": fedvae_attack_seconds,
    "fedvae_round_seconds": fedvae_round_seconds,
    "fedvae_round_peak_gb": fedvae_round_peak_gb,
    "fedvae_users_peak_ratio": fedvae_users_peak_ratio,
}
PEERS: dict[str, Callable[[], Entry]] = {
    "peer_breaching_speedup": peer_breaching_speedup,
    "peer_breaching_speedup_smlp": peer_breaching_speedup_smlp,
}
RESULTS = Path(__file__).parent / "results.json"


def main() -> None:
    """Run the benchmarks named on the command line, or all, and merge them into the results."""
    known = BENCHMARKS | PEERS
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[*known, []], help="default: all but the peers'"
    )
    parser.add_argument("--peers", action="store_true", help="by default, all of the peers'")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to merge into")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    for name in arguments.names or (PEERS if arguments.peers else BENCHMARKS):
        results[name] = known[name]()
        entry = results[name]
        print(f"{name}: {entry['value']:.2f} {entry['unit']}\n  {entry['setting']}", flush=True)
        arguments.results.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
