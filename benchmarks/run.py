"""``make bench``: run the benchmarks, write their figures, and fail if one misses its threshold.

The figures go to benchmarks/results.json and from there to docs/benchmarks.md. ``make bench-peers``
runs the benchmarks that need another library's environment.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.conditions import conditions
from benchmarks.measure import Facts
from benchmarks.page import RESULTS, write_page
from benchmarks.registry import BENCHMARKS, Benchmark


def main() -> None:
    """Run the benchmarks named on the command line, or all, and merge them into the results."""
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    names = arguments.names or [
        name for name, known in BENCHMARKS.items() if known.peer == arguments.peers
    ]
    results = read_results(arguments.results)
    missed = []
    for name in names:
        benchmark = BENCHMARKS[name]
        if arguments.quick:
            figure = benchmark.measure(**benchmark.quick)
            print(f"{name}: works ({figure.unit}); too small to be a figure", flush=True)
            continue
        measured = conditions()
        record = benchmark.measure().record()
        record |= {"threshold": benchmark.threshold, "measured": measured}
        results["figures"][name] = record
        spread = record["spread"]
        print(
            f"{name}: {record['value']:.3g} {record['unit']} "
            f"({spread['min']:.3g} to {spread['max']:.3g}, {record['n']} {record['n_of']})",
            flush=True,
        )
        arguments.results.write_text(json.dumps(results, indent=2) + "\n")
        if arguments.results == RESULTS:
            write_page(results)
        sentence = shortfall(name, benchmark, record)
        if sentence:
            missed.append(sentence)
            print(sentence, file=sys.stderr, flush=True)
    if missed:
        sys.exit(1)


def read_results(path: Path) -> dict[str, Any]:
    """The results in a file, or empty ones if there is no such file."""
    if not path.exists():
        return {"figures": {}, "earlier": {}}
    results: dict[str, Any] = json.loads(path.read_text())
    return results


def shortfall(name: str, benchmark: Benchmark, record: Facts) -> str | None:
    """One sentence if a figure misses its benchmark's threshold, else None."""
    value, measured = record["value"], record["measured"]
    if benchmark.least is not None and not value >= benchmark.least:
        missed = f"below its threshold of {benchmark.least:g}"
    elif benchmark.most is not None and not value <= benchmark.most:
        missed = f"above its threshold of {benchmark.most:g}"
    else:
        return None
    load, cores = measured["load_average"], measured["machine"]["cores"]
    # The benchmark before may have used one core.
    busy = f"; the machine was busy (load average {load:g} on {cores} cores)"
    return f"{name} is {value:.3g}, {missed}{busy if load > max(1, cores - 1) else ''}."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[*BENCHMARKS, []], help="default: all but the peers'"
    )
    parser.add_argument("--peers", action="store_true", help="by default, all of the peers'")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to merge into")
    parser.add_argument(
        "--quick", action="store_true",
        help="only try whether the benchmarks work, in small; nothing is written",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    main()
