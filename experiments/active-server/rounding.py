"""The cheap defence, the client's own rate and a rounded update: what it stops, what it costs.

    python experiments/active-server/rounding.py --output experiments/active-server/results

rounding-reading.csv has the images that the server ``bins`` reads of a client of the quickstart, by
client; rounding-accuracy.csv the accuracy of federated averaging with the same network, by seed.
What is there already is skipped. `$FEDLEAK_DATA` has the data.
"""

import argparse
import copy
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedleak.updates.update import InterceptedUpdate

sys.path.insert(0, str(Path(__file__).parent))
from measure import IMAGES, SETTINGS, append_row, asked, knowledge, read_rows, scored, untrained
from quickstart import Training, client_images, normalised, public_images, train

STEPS = (0.0, 1e-6)
"""Steps to which the update is rounded; 0 stands for none."""
READING = ("setting", "rounded_to", "client", "alone", "read", "read_loosely", "certified")
ACCURACY = ("rounded_to", "seed", "rounds", "accuracy")
CLIENTS, ROUNDS, RATE = 5, 8, 0.01
"""Clients, rounds and learning rate of the federated averaging."""


def rounded(change: Tensor, step: float) -> Tensor:
    """A change of weights, to the nearest multiple of a step.

    Args:
        change: the change.
        step: the step; if 0, the change stays.
    """
    return (change.double() / step).round() * step if step else change.double()


def answer(update: InterceptedUpdate, step: float) -> InterceptedUpdate:
    """The same update, rounded by the client before it sends its weights."""
    received = {
        name: (update.sent[name].double() + rounded(value - update.sent[name], step)).to(value)
        for name, value in update.received.items()
    }
    return replace(update, received=received)


def reading(name: str, step: float, client: int, folder: Path) -> dict[str, object]:
    """What ``bins`` reads of one client that rounds its update."""
    setting, data, public = SETTINGS[name], client_images(folder, client), public_images(folder)
    facts = knowledge(untrained(client), setting, IMAGES)
    rounds = asked(setting, facts, data, public, client)
    if step:
        rounds = tuple((sent, answer(update, step)) for sent, update in rounds)
    row = scored(setting, facts, rounds, data, public)
    facts_of = {"setting": name, "rounded_to": step, "client": client}
    return facts_of | {column: row[column] for column in READING if column in row}


def accuracy(step: float, seed: int, folder: Path) -> float:
    """Accuracy after federated averaging of clients that round their updates."""
    with np.load(folder / "cifar10.npz") as file:
        images, test = normalised(file["train_images"]), normalised(file["test_images"])
        labels, truth = (
            torch.from_numpy(file[f"{part}_labels"].astype(np.int64)) for part in ("train", "test")
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    parts = order.chunk(CLIENTS)
    model: nn.Module = untrained(seed)
    for number in range(ROUNDS):
        sent = {name: value.clone() for name, value in model.state_dict().items()}
        total = {name: torch.zeros_like(value, dtype=torch.double) for name, value in sent.items()}
        for client, chosen in enumerate(parts):
            own = copy.deepcopy(model)
            draw = 100 * (ROUNDS * seed + number) + client
            came = train(own, images[chosen], labels[chosen], Training(RATE), seed=draw)
            for name, value in came.items():
                total[name] += rounded(value - sent[name], step) * len(chosen) / len(images)
        model.load_state_dict({n: (sent[n].double() + total[n]).to(sent[n]) for n in sent})
    with torch.no_grad():
        return float((model(test).argmax(1) == truth).double().mean())


def main() -> None:
    """Measure what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=3, help="clients that are read")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the accuracy")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    data = Path(os.environ["FEDLEAK_DATA"])
    path = arguments.output / "rounding-accuracy.csv"
    done = {(float(row["rounded_to"]), int(row["seed"])) for row in read_rows(path)}
    for seed in range(arguments.seeds):
        for step in STEPS:
            if (step, seed) not in done:
                value = f"{accuracy(step, seed, data):.4f}"
                row = {"rounded_to": step, "seed": seed, "rounds": ROUNDS, "accuracy": value}
                append_row(path, ACCURACY, row)
    path = arguments.output / "rounding-reading.csv"
    kept = {(r["setting"], float(r["rounded_to"]), int(r["client"])) for r in read_rows(path)}
    for client in range(arguments.clients):
        for name in ("server's rate 1e-12", "client's rate 0.1"):
            for step in STEPS:
                if (name, step, client) not in kept:
                    append_row(path, READING, reading(name, step, client, data))


if __name__ == "__main__":
    main()
