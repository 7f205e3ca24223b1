"""How often the guard is wrong: honest models that it calls suspicious, attacks that it misses.

    python experiments/active-server/guard.py honest --output experiments/active-server/results
    python experiments/active-server/guard.py attacks --output experiments/active-server/results

Each appends to guard-honest.csv or guard-attacks.csv, a row for each model with its statistics, and
skips what is there already, so that it can be interrupted. `summary` prints the shares of alarms by
the limits of fedleak.defenses.guard.
"""

import argparse
import csv
import sys
import time
from pathlib import Path

import torch

from fedleak import inspect_model

sys.path.insert(0, str(Path(__file__).parent))
from honest_models import CHECKPOINTS, TRAININGS, checkpoints, samples

STATISTICS = ("exposed", "parallel", "bias", "rare", "largest")
COLUMNS = (
    "kind", "model", "variant", "held_out", "seed", "suspicious", *STATISTICS, "seconds", "reasons",
)  # fmt: skip


def append(path: Path, row: dict[str, object]) -> None:
    """Append a row, after the header if the file is new."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def present(path: Path) -> set[tuple[str, str, str]]:
    """What is there already: model, variant and seed."""
    if not path.exists():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {(row["model"], row["variant"], row["seed"]) for row in csv.DictReader(file)}


def measured(model: torch.nn.Module, own: torch.Tensor) -> dict[str, object]:
    """The guard's statistics and answer for a model and a client's own samples."""
    start = time.perf_counter()
    found = inspect_model(model, batch=own)
    seconds = time.perf_counter() - start
    row: dict[str, object] = {n: f"{found.statistics.get(n, float('nan')):.6g}" for n in STATISTICS}
    return row | {
        "suspicious": int(found.suspicious), "seconds": f"{seconds:.2f}",
        "reasons": " ".join(found.reasons),
    }  # fmt: skip


def honest(path: Path) -> None:
    """Look at every honest model, after each checkpoint of its training."""
    for training in TRAININGS:
        variants = [f"{epochs} epochs" for epochs in CHECKPOINTS] + [f"{max(CHECKPOINTS)} pruned"]
        done = present(path)
        if all((training.name, variant, str(training.seed)) in done for variant in variants):
            continue
        own = samples(training.data)[2]
        for epochs, pruned, model in checkpoints(training):
            variant = f"{epochs} {'pruned' if pruned else 'epochs'}"
            if (training.name, variant, str(training.seed)) not in done:
                facts = {
                    "kind": "honest", "model": training.name, "variant": variant,
                    "held_out": int(training.held_out), "seed": training.seed,
                }  # fmt: skip
                append(path, facts | measured(model, own))


def main() -> None:
    """Measure what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["honest"])
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    honest(arguments.output / "guard-honest.csv")


if __name__ == "__main__":
    main()
