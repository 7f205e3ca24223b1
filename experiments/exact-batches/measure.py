"""Share of a batch that the attack exact_batch recovers, over batch sizes, models and precisions.

    python experiments/exact-batches/measure.py --output experiments/exact-batches/results
    python experiments/exact-batches/measure.py --output runs/exact --only untrained --batch 64

It appends to results.csv, a row for each victim, and skips what is there already, so that it can be
interrupted; summary.csv has the means. Images are those of cifar10.npz and cifar100.npz in the
folder FEDLEAK_DATA, and the photographs of scikit-image.
"""

import argparse
import csv
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.exact_batch import ExactBatch
from fedleak.data import Npz, Photos
from fedleak.models import SMLP, Precode
from fedleak.models.noise import record
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

SHAPE = (3, 32, 32)
# Share recovered: L2 error on the scale [0, 1] below this, and the right label.
RECOVERED = 0.01
STEPS, RATE, TRAINING_BATCH = 300, 0.1, 64
FIRST_SEED = 2000

Data = Literal["cifar10", "cifar100", "photos"]

COLUMNS = (
    "setting", "batch", "seed", "recovered", "certified", "false", "labels", "worst_error", "left",
    "accuracy", "noise_error", "noise_median", "seconds", "findings",
)  # fmt: skip
SUMMARY = ("setting", "batch", "n", "recovered", "least", "spread", "certified", "false",
           "seconds", "longest", "guess")  # fmt: skip


class Images(NamedTuple):
    """Images of a data set.

    Args:
        pixels: whole numbers from 0 to 255, ``(images, 3, 32, 32)``.
        labels: ``(images,)``.
        mean: of each channel, on the scale [0, 1].
        std: deviation of each channel.
        classes: number of classes.
    """

    pixels: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int


class Setting(NamedTuple):
    """A model and how a client uses it.

    Args:
        name: its name in the tables.
        batches: batch sizes.
        published: the network of 1000 units without biases and N(0, 0.25) weights, inputs in
            [0, 1]; else SMLP with PyTorch's initialisation, normalised inputs.
        kind: the client's arithmetic.
        steps: number of steps of SGD before the update.
        epochs: instead, number of epochs of the images that are not in the batch.
        data: the images.
        precode: whether a bottleneck of 256 random numbers stands before the classifier.
        normalised: whether inputs are normalised, unless ``published``.
        hidden: number of hidden layers, unless ``published``.
    """

    name: str
    batches: tuple[int, ...]
    published: bool = False
    kind: torch.dtype = torch.float32
    steps: int = 0
    epochs: int = 0
    data: Data = "cifar10"
    precode: bool = False
    normalised: bool = True
    hidden: int = 2


SETTINGS = (
    Setting("published, float64", (32, 64, 128, 192, 256), published=True, kind=torch.float64),
    Setting("published, float32", (32, 64, 128, 192, 256), published=True),
    Setting("untrained, float32", (8, 16, 32, 64, 128, 192, 256)),
    Setting("untrained, float64", (64, 128), kind=torch.float64),
    Setting("one hidden layer, float32", (64, 128), hidden=1),
    Setting("PRECODE, float32", (8, 16, 32, 64), precode=True),
    Setting(
        "PRECODE, float64, [0, 1]",
        (8, 16, 32, 64),
        kind=torch.float64,
        precode=True,
        normalised=False,
    ),
    Setting("PRECODE trained, float32", (8, 16, 32), steps=STEPS, precode=True),
    Setting("trained, float32", (32, 64, 128), steps=STEPS),
    Setting("1 epoch, float32", (32, 64, 128), epochs=1),
    Setting("5 epochs, float32", (32, 64, 128), epochs=5),
    Setting("20 epochs, float32", (32, 64, 128), epochs=20),
    Setting("CIFAR-100, published, float64", (64, 128, 256), True, torch.float64, data="cifar100"),
    Setting("CIFAR-100, untrained, float32", (64, 128), data="cifar100"),
    Setting("photos, published, float64", (64, 128, 512), True, torch.float64, data="photos"),
    Setting("photos, untrained, float32", (8, 64, 128), data="photos"),
)


def load(name: Data) -> Images:
    """The images of a data set.

    Args:
        name: the data set.
    """
    if name == "photos":
        train, _ = Photos().load()
    else:
        folder = Path(os.environ.get("FEDLEAK_DATA", "data"))
        train, _ = Npz(path=str(folder / f"{name}.npz")).load()
    labels = torch.as_tensor(train.labels)
    return Images(
        torch.as_tensor(train.images), labels, tuple(train.mean), tuple(train.std),
        int(labels.max()) + 1,
    )  # fmt: skip


def make_model(setting: Setting, classes: int, images: Tensor, labels: Tensor) -> nn.Module:
    """The model, seeded by torch's random state.

    Args:
        setting: what it is.
        classes: number of classes.
        images: normalised training images.
        labels: their labels.
    """
    if setting.published:
        first = nn.Linear(3072, 1000, bias=False)
        head = nn.Linear(1000, classes, bias=False)
        nn.init.normal_(first.weight, std=0.5)
        return nn.Sequential(nn.Flatten(), first, nn.ReLU(), head).to(setting.kind)
    precode = Precode() if setting.precode else None
    made: type[SMLP] = type("Perceptron", (SMLP,), {"hidden_layers": setting.hidden})
    model = made(input_shape=SHAPE, num_classes=classes, precode=precode).to(setting.kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    steps = setting.steps or setting.epochs * len(images) // TRAINING_BATCH
    for _ in range(steps):
        chosen = torch.randint(len(images), (TRAINING_BATCH,))
        optimizer.zero_grad()
        loss_of(model, (images[chosen], labels[chosen])).backward()
        optimizer.step()
    return model


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean cross entropy, with the divergence of a bottleneck.

    Args:
        model: one of :func:`make_model`.
        batch: inputs and labels.
    """
    if isinstance(model, SMLP):
        return model.batch_loss(batch)
    return functional.cross_entropy(model(batch[0]), batch[1])


class Victim(NamedTuple):
    """A client's batch and what the server gets.

    Args:
        inputs: normalised, ``(batch, 3, 32, 32)``.
        labels: ``(batch,)``.
        update: one gradient.
        knowledge: what the server knows.
        drawn: random numbers that the model drew, by slot.
    """

    inputs: Tensor
    labels: Tensor
    update: InterceptedUpdate
    knowledge: Knowledge
    drawn: dict[str, list[Tensor]]

    @property
    def std(self) -> Tensor:
        """Deviation of each channel that inputs were divided by, ``(3, 1, 1)``, float64."""
        return torch.tensor(self.knowledge.std, dtype=torch.float64).reshape(3, 1, 1)


def make_victim(setting: Setting, batch: int, seed: int, data: Images) -> Victim:
    """A victim.

    Args:
        setting: its model.
        batch: number of samples.
        seed: seeds weights, training and batch.
        data: the images.
    """
    torch.manual_seed(seed)
    pixels, labels = data.pixels.to(setting.kind) / 255, data.labels
    plain = setting.published or not setting.normalised
    mean, std = ((0.0,) * 3, (1.0,) * 3) if plain else (data.mean, data.std)
    columns = [torch.tensor(v, dtype=setting.kind).reshape(3, 1, 1) for v in (mean, std)]
    order = torch.randperm(len(pixels))
    victims, others = order[:batch], order[batch:]
    inputs = (pixels - columns[0]) / columns[1]
    model = make_model(setting, data.classes, inputs[others], labels[others])
    x, y = inputs[victims], labels[victims]
    with record(model) as drawn:
        loss = loss_of(model, (x, y))
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    update = InterceptedUpdate.of(
        model, gradient=dict(zip(names, gradient, strict=True)), num_examples=batch
    )
    knowledge = Knowledge(
        model, SHAPE, data.classes, mean=mean, std=std, num_samples=batch,
        loss=loss_of,
    )  # fmt: skip
    return Victim(x, y, update, knowledge, drawn)


def measure(setting: Setting, batch: int, seed: int, data: Images) -> dict[str, Any]:
    """Make a victim, attack it and compare.

    Args:
        setting: the row.
        batch: number of samples.
        seed: seeds weights, training and batch.
        data: the images.
    """
    victim = make_victim(setting, batch, seed, data)
    x, y, update, knowledge, drawn = victim
    with torch.no_grad():
        output = knowledge.model(x)
    started = time.process_time()
    (found,) = ExactBatch()([update], knowledge, seed=seed)
    seconds = time.process_time() - started
    bounds = found.error_bounds
    assert bounds is not None
    scale = victim.std
    flat = (found.inputs.double() * scale).flatten(1)
    distance = torch.cdist(flat, (x.double() * scale).flatten(1))
    errors, nearest = distance.min(dim=1)
    right = found.labels == y[nearest]
    good, certified = (errors < RECOVERED) & right, bounds.isfinite()
    recovered = len(set(nearest[good].tolist()))
    noise = torch.zeros(1)
    for slot, values in found.noise.items():
        noise = (values - drawn[slot][0][nearest])[certified].abs()
    return {
        "setting": setting.name, "batch": batch, "seed": seed,
        "recovered": f"{recovered / batch:.4f}",
        "certified": int(certified.sum()), "false": int((certified & ~good).sum()),
        "labels": f"{float(right.double().mean()):.4f}",
        "worst_error": f"{float(errors[certified].max()) if certified.any() else 0:.2e}",
        "left": f"{found.cost:.2e}",
        "accuracy": f"{float((output.argmax(1) == y).double().mean()):.3f}",
        "noise_error": f"{float(noise.max()) if noise.numel() else 0:.1e}",
        "noise_median": f"{float(noise.median()) if noise.numel() else 0:.1e}",
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
    data: dict[Data, Images] = {}
    for setting in SETTINGS:
        for batch in setting.batches:
            for seed in range(chosen.first, chosen.first + chosen.seeds):
                skipped = (chosen.batch and batch not in chosen.batch) or not (
                    setting.name.startswith(chosen.only)
                )
                if skipped or (setting.name, batch, seed) in done:
                    continue
                if setting.data not in data:
                    data[setting.data] = load(setting.data)
                row = measure(setting, batch, seed, data[setting.data])
                rows.append(row)
                print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
                write(path, COLUMNS, rows)
                write(chosen.output / "summary.csv", SUMMARY, summarise(rows))


if __name__ == "__main__":
    main()
