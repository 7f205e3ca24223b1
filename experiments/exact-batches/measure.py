"""Share of a batch that the attack exact_batch recovers, over batch sizes, models and precisions.

    python experiments/exact-batches/measure.py --output experiments/exact-batches/results
    python experiments/exact-batches/measure.py --output runs/exact --only untrained --batch 64

It appends to results.csv, a row for each victim, and skips what is there already, so that it can be
interrupted; summary.csv has the means. Images are those of cifar10.npz in the folder FEDLEAK_DATA.
"""

import argparse
import csv
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.exact_batch import ExactBatch
from fedleak.data import Npz
from fedleak.models import SMLP
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

CLASSES, SHAPE = 10, (3, 32, 32)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# Share recovered: L2 error on the scale [0, 1] below this, and the right label.
RECOVERED = 0.01
STEPS, RATE, TRAINING_BATCH = 300, 0.1, 64
FIRST_SEED = 1000

COLUMNS = (
    "setting", "batch", "seed", "recovered", "certified", "false", "labels", "worst_error", "left",
    "accuracy", "seconds", "findings",
)  # fmt: skip
SUMMARY = ("setting", "batch", "n", "recovered", "least", "spread", "certified", "false",
           "seconds", "longest", "guess")  # fmt: skip


class Setting(NamedTuple):
    """A model and how a client uses it.

    Args:
        name: its name in the tables.
        published: the network of 1000 units without biases and N(0, 0.25) weights, inputs in
            [0, 1]; else SMLP with PyTorch's initialisation, normalised inputs.
        kind: the client's arithmetic.
        steps: number of steps of SGD before the update.
        batches: batch sizes.
    """

    name: str
    published: bool
    kind: torch.dtype
    steps: int
    batches: tuple[int, ...]


SETTINGS = (
    Setting("published, float64", True, torch.float64, 0, (64, 128, 192, 256)),
    Setting("published, float32", True, torch.float32, 0, (64, 128, 192, 256)),
    Setting("untrained, float32", False, torch.float32, 0, (32, 64, 128, 192, 256)),
    Setting("trained, float32", False, torch.float32, STEPS, (32, 64, 128)),
)


def make_model(setting: Setting, images: Tensor, labels: Tensor) -> nn.Module:
    """The model, seeded by torch's random state.

    Args:
        setting: what it is.
        images: normalised training images.
        labels: their labels.
    """
    if setting.published:
        model: nn.Module = nn.Sequential(
            nn.Flatten(),
            nn.Linear(3072, 1000, bias=False),
            nn.ReLU(),
            nn.Linear(1000, CLASSES, bias=False),
        )
        nn.init.normal_(model[1].weight, std=0.5)
        return model.to(setting.kind)
    model = SMLP(input_shape=SHAPE, num_classes=CLASSES).to(setting.kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(setting.steps):
        chosen = torch.randint(len(images), (TRAINING_BATCH,))
        optimizer.zero_grad()
        functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return model


def measure(setting: Setting, batch: int, seed: int, data: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Make a victim, attack it and compare.

    Args:
        setting: the row.
        batch: number of samples.
        seed: seeds weights, training and batch.
        data: images, whole numbers from 0 to 255, and labels.
    """
    torch.manual_seed(seed)
    pixels, labels = data[0].to(setting.kind) / 255, data[1]
    mean, std = ((0.0,) * 3, (1.0,) * 3) if setting.published else (MEAN, STD)
    columns = [torch.tensor(v, dtype=setting.kind).reshape(3, 1, 1) for v in (mean, std)]
    order = torch.randperm(len(pixels))
    victims, others = order[:batch], order[batch:]
    inputs = (pixels - columns[0]) / columns[1]
    model = make_model(setting, inputs[others], labels[others])
    x, y = inputs[victims], labels[victims]
    output = model(x)
    gradient = torch.autograd.grad(functional.cross_entropy(output, y), list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    update = InterceptedUpdate.of(
        model, gradient=dict(zip(names, gradient, strict=True)), num_examples=batch
    )
    knowledge = Knowledge(
        model, SHAPE, CLASSES, mean=mean, std=std, num_samples=batch,
        loss=lambda m, b: functional.cross_entropy(m(b[0]), b[1]),
    )  # fmt: skip
    started = time.process_time()
    (found,) = ExactBatch()([update], knowledge, seed=seed)
    seconds = time.process_time() - started
    bounds = found.error_bounds
    assert bounds is not None
    scale = columns[1].double()
    flat = (found.inputs.double() * scale).flatten(1)
    distance = torch.cdist(flat, (x.double() * scale).flatten(1))
    errors, nearest = distance.min(dim=1)
    right = found.labels == y[nearest]
    good, certified = (errors < RECOVERED) & right, bounds.isfinite()
    recovered = len(set(nearest[good].tolist()))
    return {
        "setting": setting.name, "batch": batch, "seed": seed,
        "recovered": f"{recovered / batch:.4f}",
        "certified": int(certified.sum()), "false": int((certified & ~good).sum()),
        "labels": f"{float(right.double().mean()):.4f}",
        "worst_error": f"{float(errors[certified].max()) if certified.any() else 0:.2e}",
        "left": f"{found.cost:.2e}",
        "accuracy": f"{float((output.argmax(1) == y).double().mean()):.3f}",
        "seconds": f"{seconds:.1f}", "findings": " | ".join(found.findings),
    }  # fmt: skip


def summarise(rows: Sequence[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """A row for each setting and batch size.

    Args:
        rows: those of the victims.
    """
    cells = dict.fromkeys((row["setting"], int(row["batch"])) for row in rows)
    for setting, batch in cells:
        own = [r for r in rows if (r["setting"], int(r["batch"])) == (setting, batch)]
        shares = [float(row["recovered"]) for row in own]
        seconds = [float(row["seconds"]) for row in own]
        yield {
            "setting": setting, "batch": batch, "n": len(own),
            "recovered": f"{statistics.fmean(shares):.3f}", "least": f"{min(shares):.3f}",
            "spread": f"{statistics.pstdev(shares):.3f}",
            "certified": f"{statistics.fmean(float(r['certified']) for r in own) / batch:.3f}",
            "false": sum(int(row["false"]) for row in own),
            "seconds": f"{statistics.fmean(seconds):.1f}", "longest": f"{max(seconds):.1f}",
            # The mean image is no image of the batch.
            "guess": "0.000",
        }  # fmt: skip


def write(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write a table.

    Args:
        path: the file.
        columns: its columns.
        rows: its rows.
    """
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Measure what is not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--only", default="", help="settings whose names begin so")
    parser.add_argument("--batch", type=int, nargs="*", help="these batch sizes alone")
    parser.add_argument("--seeds", type=int, default=5, help="number of victims")
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="the first seed")
    chosen = parser.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    path = chosen.output / "results.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    done = {(row["setting"], int(row["batch"]), int(row["seed"])) for row in rows}
    train, _ = Npz(path=str(Path(os.environ.get("FEDLEAK_DATA", "data")) / "cifar10.npz")).load()
    data = (torch.as_tensor(train.images), torch.as_tensor(train.labels))
    for setting in SETTINGS:
        for batch in setting.batches:
            for seed in range(chosen.first, chosen.first + chosen.seeds):
                skipped = (chosen.batch and batch not in chosen.batch) or not (
                    setting.name.startswith(chosen.only)
                )
                if skipped or (setting.name, batch, seed) in done:
                    continue
                row = measure(setting, batch, seed, data)
                rows.append(row)
                print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
                write(path, COLUMNS, rows)
                write(chosen.output / "summary.csv", SUMMARY, summarise(rows))


if __name__ == "__main__":
    main()
