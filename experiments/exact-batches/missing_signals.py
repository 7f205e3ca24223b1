"""Samples that follow while signals of others are missing, in a network of two hidden layers.

    python experiments/exact-batches/missing_signals.py --output experiments/exact-batches/results

The attack's descent is given the signals of some samples, as exact as its own search finds them,
and asked for these samples: missing_signals.csv counts those whose image is within an L2 distance
of 0.01 on the scale [0, 1], with the right label. Images are those of measure.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedleak.attacks.exact_batches.descent import descend
from fedleak.attacks.exact_batches.network import Network, read_network
from fedleak.attacks.exact_batches.remainder import Remainder
from fedleak.attacks.exact_batches.two_state import Signals, TwoStates

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import (
    FIRST_SEED,
    RECOVERED,
    SETTINGS,
    Images,
    Setting,
    Victim,
    load,
    make_victim,
    write,
)

SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.9, 1.0)
# Relative error of a signal that the search takes for exact, in float32.
EXACT = 1e-3
COLUMNS = ("setting", "batch", "seed", "inactive", "missing", "tried", "determined", "worst_error")


def signals_of(victim: Victim, network: Network, remainder: Remainder) -> tuple[Signals, Tensor]:
    """The signals of a batch in the last hidden layer, and the least number of inactive units.

    Args:
        victim: the batch.
        network: its model.
        remainder: its gradient.
    """
    trace = network.trace(victim.inputs.flatten(1).double())
    residuals = network.residuals(trace.softmax, victim.labels)
    scale = -residuals.gather(1, victim.labels[:, None])
    columns = remainder.factors(network.hidden - 1).columns
    states = TwoStates(columns, network.weights[-1], torch.Generator().manual_seed(0), EXACT)
    own = network.signals(trace.masks, residuals)[-1] @ columns / network.scale
    found = states.polish(own / scale, residuals / scale, victim.labels)
    return found, (1 - trace.masks[-1]).sum(dim=1).min()


def measure(
    setting: Setting, batch: int, seed: int, data: Images, shares: Sequence[float], most: int
) -> list[dict[str, Any]]:
    """Withhold signals of a victim's samples and ask for the others, a row for each share.

    Args:
        setting: its model.
        batch: number of samples.
        seed: seeds weights, training, batch, and which signals are withheld.
        data: the images.
        shares: of the signals that are withheld; of all but one where it is 1.
        most: highest number of samples that are asked for.
    """
    victim = make_victim(setting, batch, seed, data)
    network = read_network(victim.knowledge)
    assert isinstance(network, Network), network
    generator = torch.Generator().manual_seed(seed)
    gradients = network.gradients(dict(victim.update.received))
    remainder = Remainder(network, gradients, batch, generator)
    signals, inactive = signals_of(victim, network, remainder)
    true = (victim.inputs.double() * victim.std).flatten(1)
    rows = []
    for share in shares:
        missing = min(round(share * batch), batch - 1)
        order = torch.randperm(len(signals), generator=generator)
        known = signals[order[: batch - missing]]
        tried = min(most, len(known))
        errors = []
        for found in descend(remainder, known, list(range(tried))):
            image = found.inputs.reshape(-1, *victim.inputs.shape[1:]) * victim.std
            error, at = torch.cdist(image.flatten(1), true).min(dim=1)
            if float(error) < RECOVERED and int(found.labels) == int(victim.labels[at]):
                errors.append(float(error))
        rows.append({
            "setting": setting.name, "batch": batch, "seed": seed, "inactive": int(inactive),
            "missing": batch - len(known), "tried": tried, "determined": len(errors),
            "worst_error": f"{max(errors, default=0):.1e}",
        })  # fmt: skip
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    """Measure the untrained model of measure.py."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the table")
    parser.add_argument("--batch", type=int, nargs="*", default=[192], help="batch sizes")
    parser.add_argument("--seeds", type=int, default=1, help="number of victims")
    parser.add_argument("--most", type=int, default=8, help="samples that are asked for")
    chosen = parser.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    (setting,) = (entry for entry in SETTINGS if entry.name == "untrained, float32")
    data = load(setting.data)
    rows: list[dict[str, Any]] = []
    for batch in chosen.batch:
        for seed in range(FIRST_SEED, FIRST_SEED + chosen.seeds):
            rows += measure(setting, batch, seed, data, SHARES, chosen.most)
            write(chosen.output / "missing_signals.csv", COLUMNS, rows)


if __name__ == "__main__":
    main()
