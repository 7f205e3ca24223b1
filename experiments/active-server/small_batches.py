"""What the guard says of models that were made to read small batches, and narrow first layers.

    python experiments/active-server/small_batches.py --output experiments/active-server/results

Appends to small-batches.csv, a row for each model: what a malicious server reads of a batch,
whether the guard suspects the model, and the share of 8 to 128 own samples that could be read one
by one from the first linear layer, in this model and with new random weights. Honest models stand
beside, untrained and after 1 and 5 epochs. What is there already is skipped.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from fedleak import inspect_model
from fedleak.defenses.received_model import exposed_share, fresh_copy, layers, unit_gradients
from fedleak.servers import SolitonBiases, TrapWeights

sys.path.insert(0, str(Path(__file__).parent))
from attack_models import SEEDS, Attack, malicious, perceptron
from honest_models import CHECKPOINTS, TRAININGS, Training, checkpoints, mlp, whole_data

OWN = 1024
SIZES = (8, 16, 32, 64, 128)
HONEST = (
    "quickstart sgd", "mlp 1000", "mlp medical", "wide mlp medical", "mlp 512 x 4", "leaky mlp",
    "gelu mlp medical", "mlp kaiming medical", "lenet relu", "vgg medical",
)  # fmt: skip
EPOCHS = (0, 1, 5)
COLUMNS = (
    "model", "variant", "seed", "read", "suspicious",
    *(f"{kind}_{size}" for size in SIZES for kind in ("exposed", "random")),
)  # fmt: skip


def narrow() -> nn.Module:
    """The perceptron 3072-128-64-10."""
    return mlp(3072, 10, 128, 64)


def cases() -> Iterator[tuple[str, str, int, Attack | Training]]:
    """Name, variant and seed of each model, and how it is made."""
    for name, make, batches in (
        ("3072-128-64-10", narrow, (8, 16, 32, 64)), ("3072-1000-10", perceptron, (8, 16, 32, 64)),
    ):  # fmt: skip
        for server in (SolitonBiases, TrapWeights):
            for batch in batches:
                attack = Attack(server.name, server, make, batch=batch, own=OWN)
                for seed in SEEDS:
                    yield f"{server.name}, {name}", f"B = {batch}", seed, attack
    trainings = [training for training in TRAININGS if training.name in HONEST]
    trainings.append(Training("mlp 128-64", narrow, "cifar10", False))
    for training in trainings:
        for epochs in EPOCHS:
            yield training.name, f"{epochs} epochs", training.seed, training


def measured(model: nn.Module, own: torch.Tensor) -> dict[str, object]:
    """The guard's answer, and the shares of the first linear layer."""
    name = next(name for name, layer in layers(model) if isinstance(layer, nn.Linear))
    here = unit_gradients(model, own)[name]
    random = unit_gradients(fresh_copy(model), own)[name]
    row: dict[str, object] = {"suspicious": int(inspect_model(model, batch=own).suspicious)}
    for size in SIZES:
        row[f"exposed_{size}"] = f"{exposed_share(here, size):.3f}"
        row[f"random_{size}"] = f"{exposed_share(random, size):.3f}"
    return row


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    path = parser.parse_args().output / "small-batches.csv"
    done = set()
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            done = {(row["model"], row["variant"], row["seed"]) for row in csv.DictReader(file)}
    for name, variant, seed, made in cases():
        if (name, variant, str(seed)) in done:
            continue
        read = float("nan")
        if isinstance(made, Attack):
            model, own, read = malicious(made, seed)
        else:
            place = CHECKPOINTS.index(int(variant.split()[0]))
            _, _, model = next(islice(checkpoints(made), place, None))
            own = whole_data(made.data)[0][:OWN]
        row = {"model": name, "variant": variant, "seed": seed, "read": f"{read:.3f}"}
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row | measured(model, own))


if __name__ == "__main__":
    main()
