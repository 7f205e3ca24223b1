"""``make bench``: run all benchmarks and write benchmarks/results.json."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.matching import Entry, lenet_batched_speedup, mlp_matching_speedup

BENCHMARKS: dict[str, Callable[[], Entry]] = {
    "mlp_matching_speedup": mlp_matching_speedup,
    "lenet_batched_speedup": lenet_batched_speedup,
}
RESULTS = Path(__file__).parent / "results.json"


def main() -> None:
    """Run the benchmarks named on the command line, or all, and merge them into the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="default: all")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in arguments.names or BENCHMARKS:
        results[name] = BENCHMARKS[name]()
        entry = results[name]
        print(f"{name}: {entry['value']:.2f} {entry['unit']}\n  {entry['setting']}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
