"""How often the guard is wrong: honest models that it calls suspicious, attacks that it misses.

    python experiments/active-server/guard.py honest --output experiments/active-server/results
    python experiments/active-server/guard.py attacks --output experiments/active-server/results

Each appends to guard-honest.csv or guard-attacks.csv, a row for each model with its statistics, and
skips what is there already, so that it can be interrupted. `summary` prints the shares of alarms by
the limits of fedleak.defenses.guard.
"""

import argparse
import csv
import math
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest

from fedleak import inspect_model
from fedleak.defenses.guard import EXPOSED, LIMITS

sys.path.insert(0, str(Path(__file__).parent))
from attack_models import ATTACKS, SEEDS, malicious
from fresh_models import FRESH
from honest_models import CHECKPOINTS, OWN, TRAININGS, checkpoints, data_of

STATISTICS = (
    "exposed_64", "exposed_128", "exposed_256", "parallel", "bias", "offset", "rare", "largest",
)  # fmt: skip
COLUMNS = (
    "kind", "model", "variant", "held_out", "seed", "suspicious", "remarks", *STATISTICS, "read",
    "read_plain", "seconds", "reasons",
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
    return {(row["model"], row["variant"], row["seed"]) for row in rows_of(path)}


def measured(model: torch.nn.Module, own: torch.Tensor) -> dict[str, object]:
    """The guard's statistics and answer for a model and a client's own samples."""
    start = time.perf_counter()
    found = inspect_model(model, batch=own)
    seconds = time.perf_counter() - start
    row: dict[str, object] = {n: f"{found.statistics.get(n, float('nan')):.6g}" for n in STATISTICS}
    return row | {
        "suspicious": int(found.suspicious), "remarks": len(found.remarks),
        "seconds": f"{seconds:.2f}", "reasons": " ".join(found.reasons),
    }  # fmt: skip


def honest(path: Path) -> None:
    """Look at every honest model, after each checkpoint of its training."""
    for training in (*TRAININGS, *FRESH):
        variants = [f"{epochs} epochs" for epochs in CHECKPOINTS] + [f"{max(CHECKPOINTS)} pruned"]
        done = present(path)
        if all((training.name, variant, str(training.seed)) in done for variant in variants):
            continue
        own = data_of(training)[0][:OWN]
        for epochs, pruned, model in checkpoints(training):
            variant = f"{epochs} {'pruned' if pruned else 'epochs'}"
            if (training.name, variant, str(training.seed)) not in done:
                facts = {
                    "kind": "honest", "model": training.name, "variant": variant,
                    "held_out": int(training.held_out), "seed": training.seed,
                }  # fmt: skip
                append(path, facts | measured(model, own))


def attacks(path: Path) -> None:
    """Look at every malicious model."""
    for attack in ATTACKS:
        for seed in SEEDS:
            kind = "knows the guard" if attack.knows_guard else "attack"
            if (attack.name, kind, str(seed)) in present(path):
                continue
            model, own, share, plain = malicious(attack, seed)
            facts = {
                "kind": kind, "model": attack.name, "variant": kind,
                "held_out": int(attack.held_out), "seed": seed, "read": f"{share:.3f}",
                "read_plain": f"{plain:.3f}",
            }  # fmt: skip
            append(path, facts | measured(model, own))


def caught(row: dict[str, str], limits: Mapping[str, float]) -> bool:
    """Whether a row's statistics exceed a limit, or it was refused for another reason."""
    values = {name: float(row[name]) for name in STATISTICS}
    lost = math.isinf(values["largest"]) or "not finite" in row["reasons"]
    reasons = (name for name in STATISTICS if name not in EXPOSED)
    return lost or any(values[name] > limits[name] for name in reasons)


def summary(folder: Path) -> None:
    """Print alarms by groups, and write them to guard-summary.csv."""
    rows = rows_of(folder / "guard-honest.csv") + rows_of(folder / "guard-attacks.csv")
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["kind"], "all"), []).append(row)
        if row["kind"] != "knows the guard":
            part = "held out" if row["held_out"] == "1" else "limits set"
            groups.setdefault((row["kind"], part), []).append(row)
        if row["kind"] != "honest":
            groups.setdefault((row["kind"], row["model"]), []).append(row)
    with (folder / "guard-summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "group", "n", "alarms", "share", "95 %", "read", *STATISTICS])
        for (kind, group), found in groups.items():
            alarms = sum(caught(row, LIMITS) for row in found)
            interval = proportion_interval(alarms, len(found))
            reads = [float(row["read"]) for row in found if row["read"] not in ("", "nan")]
            most = [max(float(row[name]) for row in found) for name in STATISTICS]
            line = [
                kind, group, len(found), alarms, f"{alarms / len(found):.3f}",
                f"{interval.low:.3f} to {interval.high:.3f}",
                f"{statistics.fmean(reads):.3f}" if reads else "", *(f"{v:.3g}" for v in most),
            ]  # fmt: skip
            writer.writerow(line)
            print(*line, sep=" | ")


def proportion_interval(alarms: int, number: int) -> Any:
    """The exact interval of a proportion at 95 %."""
    return binomtest(alarms, number).proportion_ci()


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if it is missing."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Measure what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["honest", "attacks", "summary"])
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if arguments.what == "summary":
        summary(folder)
    elif arguments.what == "honest":
        honest(folder / "guard-honest.csv")
    else:
        attacks(folder / "guard-attacks.csv")


if __name__ == "__main__":
    main()
