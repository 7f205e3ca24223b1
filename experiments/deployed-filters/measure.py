"""What leaks through the filters that people deploy, to attackers who know them and who do not.

    FEDLEAK_DATA=folder python experiments/deployed-filters/measure.py --output runs/filters

It appends to results.csv, a row for each victim, and to accuracy.csv, a row for each federation,
and skips what is there already, so that it can be interrupted; summary.csv has the table.
"""

import argparse
import csv
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor, nn

from fedleak import (
    IGA,
    NRA,
    RGAP,
    Analytic,
    BadInput,
    ExactNRA,
    GroundTruth,
    Knowledge,
    Reconstruction,
    score_images,
)

# Run as a script or imported by a test, the module beside this one is the same.
sys.path.insert(0, str(Path(__file__).parent))
from filters import FILTERS, MEAN, RATE, STD, epsilon_of, make_model, normalised, trained, victim

SUCCESS = 0.6
"""SSIM from which a victim counts as reconstructed."""
ROUNDS, CLIENTS = 20, 10
# Iterations of gradient matching: fewer than the published 7,000, for the time of it.
ITERATIONS = 500
COLUMNS = (
    "filter", "model", "precode", "epochs", "attack", "told", "victim", "ssim", "psnr", "guess",
    "explained", "seconds", "findings",
)  # fmt: skip
ACCURACY = ("filter", "model", "seed", "round", "accuracy")
SUMMARY = (
    "filter", "model", "precode", "epochs", "attack", "told", "n", "ssim", "spread", "guess",
    "reconstructed", "low", "high",
)  # fmt: skip


class Cell(NamedTuple):
    """One row of the table.

    Args:
        filter: name of the filter.
        model: name of the model.
        precode: whether the model has PRECODE.
        epochs: epochs that the model was trained for.
        attack: name of the attack.
        told: whether the attack is told the filter.
    """

    filter: str
    model: str
    precode: bool
    epochs: int
    attack: str
    told: bool


def attack_of(name: str) -> Any:
    """An attack of the study, by its name."""
    return {
        "analytic": lambda: Analytic(),
        "exact_nra": lambda: ExactNRA(nra_iterations=ITERATIONS),
        "rgap": lambda: RGAP(nra_iterations=ITERATIONS),
        "iga": lambda: IGA(iterations=ITERATIONS),
        "nra": lambda: NRA(iterations=ITERATIONS),
    }[name]()


def cells() -> Iterator[Cell]:
    """The rows, the most telling ones first."""
    others = [name for name in FILTERS if name not in ("percentile", "none")]
    for name in ("percentile", "none"):
        for epochs in (0, 5):
            yield from _of(name, "smlp", False, epochs, "analytic")
            yield from _of(name, "smlp", True, epochs, "exact_nra")
            yield from _of(name, "lenet", True, epochs, "exact_nra")
            yield from _of(name, "lenet", False, epochs, "rgap")
    for epochs in (0, 5):
        for name in others:
            yield from _of(name, "smlp", False, epochs, "analytic")
    for name in others:
        yield from _of(name, "lenet", True, 0, "exact_nra")
    for name in ("percentile", "none", *others):
        yield from _of(name, "lenet", False, 0, "iga")
        yield from _of(name, "lenet", True, 0, "nra")
    for name in others:
        for epochs in (0, 5):
            yield from _of(name, "smlp", True, epochs, "exact_nra")
            yield from _of(name, "lenet", False, epochs, "rgap")
        yield from _of(name, "lenet", True, 5, "exact_nra")
    for name in FILTERS:
        for epochs in (0, 5):
            yield from _of(name, "resnet18", False, epochs, "iga")


def _of(name: str, model: str, precode: bool, epochs: int, attack: str) -> Iterator[Cell]:
    for told in (True, False) if FILTERS[name].told is not None else (False,):
        yield Cell(name, model, precode, epochs, attack, told)


@cache
def victims(data: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Images and labels of the victims, and the mean of other images."""
    with np.load(data / "victims_cifar10.npz", allow_pickle=False) as file:
        images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    with np.load(data / "cifar10.npz", allow_pickle=False) as file:
        mean = normalised(file["train_images"]).mean(dim=0)
    return images, labels.long(), mean


@cache
def model_of(kind: str, precode: bool, epochs: int, data: Path, output: Path) -> nn.Module:
    """The model with the weights that the server sends."""
    model = make_model(kind, precode, seed=0)
    if epochs:
        name = f"{kind}{'-precode' if precode else ''}-{epochs}.safetensors"
        trained(model, data, 0, output / "weights" / name)
    return model.train()


def measure(cell: Cell, number: int, data: Path, output: Path) -> dict[str, Any]:
    """Make one victim, attack it and score what comes out.

    Args:
        cell: the row.
        number: number of the victim, from 0.
        data: the folder of the data.
        output: the folder of the trained weights.
    """
    images, labels, mean = victims(data)
    batch = images[number : number + 1], labels[number : number + 1]
    chosen = FILTERS[cell.filter]
    model = model_of(cell.model, cell.precode, cell.epochs, data, output)
    update = victim(model, batch, chosen, number)
    knowledge = Knowledge(
        model=model, input_shape=(3, 32, 32), num_classes=10, mean=MEAN, std=STD, num_samples=1,
        labels=batch[1], protocol="delta", learning_rate=RATE,
        defense=chosen.told if cell.told else None,
    )  # fmt: skip
    row = cell._asdict() | {"victim": number, "guess": f"{_score(batch, mean[None]).ssim:.4f}"}
    started = time.perf_counter()
    try:
        (found,) = attack_of(cell.attack)([update], knowledge, seed=number)
    except BadInput as refusal:
        return dict.fromkeys(COLUMNS, "") | row | {"findings": f"refused: {refusal}"}
    scores = _score(batch, found.inputs)
    return row | {
        "ssim": f"{scores.ssim:.4f}", "psnr": f"{scores.psnr:.2f}",
        "explained": "" if math.isnan(found.explained) else f"{found.explained:.4f}",
        "seconds": f"{time.perf_counter() - started:.1f}", "findings": " | ".join(found.findings),
    }  # fmt: skip


def _score(batch: tuple[Tensor, Tensor], inputs: Tensor) -> Any:
    truth, found = GroundTruth(*batch), Reconstruction(inputs, batch[1])
    (scores,) = score_images(truth, found, mean=MEAN, std=STD)
    return scores


def accuracies(name: str, kind: str, seed: int, data: Path) -> list[float]:
    """Test accuracy after each round of a federation whose clients apply a filter.

    The clients have equal parts of the training images; each makes an epoch of SGD in batches of 32
    in every round, and the server adds the mean of what they send.

    Args:
        name: the filter.
        kind: the model.
        seed: of weights, parts, batches and filters.
        data: the folder of the data.
    """
    with np.load(data / "cifar10.npz", allow_pickle=False) as file:
        images, labels = normalised(file["train_images"]), torch.from_numpy(file["train_labels"])
        tests, wanted = normalised(file["test_images"]), torch.from_numpy(file["test_labels"])
    labels, found = labels.long(), []
    model = make_model(kind, False, seed)
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randperm(len(images), generator=generator).chunk(CLIENTS)
    for round_ in range(1, ROUNDS + 1):
        start = {n: v.detach().clone() for n, v in model.named_parameters()}
        total = {n: torch.zeros_like(v) for n, v in start.items()}
        for client, part in enumerate(parts):
            change, steps = _local(model, start, images[part], labels[part], generator)
            outgoing = _outgoing(change, model, start, steps)
            seed_ = 1_000_000 * seed + 1000 * round_ + client
            sent = FILTERS[name].sent(change, outgoing, seed_)
            total = {n: value + sent[n] / CLIENTS for n, value in total.items()}
        _load(model, {n: value + total[n] for n, value in start.items()})
        with torch.no_grad():
            right = model.eval()(tests).argmax(dim=1) == wanted
        model.train()
        found.append(float(right.double().mean()))
    return found


def _local(
    model: nn.Module, start: dict[str, Tensor], images: Tensor, labels: Tensor,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], int]:  # fmt: skip
    _load(model, start)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    batches = torch.randperm(len(images), generator=generator).split(32)
    for batch in batches:
        optimizer.zero_grad()
        model.batch_loss((images[batch], labels[batch])).backward()
        optimizer.step()
    return {n: v.detach() - start[n] for n, v in model.named_parameters()}, len(batches)


def _outgoing(
    change: dict[str, Tensor], model: nn.Module, start: dict[str, Tensor], steps: int
) -> Any:
    from fedleak import Outgoing

    _load(model, start)
    return Outgoing(change, model, steps=steps)


def _load(model: nn.Module, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(values[name])


def interval(successes: int, number: int) -> tuple[float, float]:
    """The Clopper-Pearson interval of a share, of 95 %.

    Args:
        successes: how many of them succeeded.
        number: how many there were.
    """
    low = beta.ppf(0.025, successes, number - successes + 1) if successes else 0.0
    high = beta.ppf(0.975, successes + 1, number - successes) if successes < number else 1.0
    return float(low), float(high)


def summarise(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The means over victims of what was measured, in the order of the table.

    Args:
        rows: rows of results.csv.
    """
    found = []
    for cell in dict.fromkeys(cells()):
        key = {name: str(value) for name, value in cell._asdict().items()}
        own = [row for row in rows if key.items() <= row.items()]
        scored = [float(row["ssim"]) for row in own if row["ssim"]]
        if not scored:
            continue
        successes = sum(value >= SUCCESS for value in scored)
        low, high = interval(successes, len(scored))
        found.append(key | {
            "n": str(len(scored)), "ssim": f"{statistics.fmean(scored):.3f}",
            "spread": f"{statistics.stdev(scored):.3f}" if len(scored) > 1 else "",
            "guess": f"{statistics.fmean(float(row['guess']) for row in own):.3f}",
            "reconstructed": f"{successes / len(scored):.2f}", "low": f"{low:.2f}",
            "high": f"{high:.2f}",
        })  # fmt: skip
    return found


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if it is missing."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _append(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def main(
    output: Path, data: Path, number: int, only: str | None, accuracy: bool, seeds: int
) -> None:
    """Measure what is missing, and write summary.csv.

    Args:
        output: a folder, which is made.
        data: the folder of the data.
        number: victims of each row, up to 64.
        only: measure rows alone whose text, such as ``percentile lenet True 0 exact_nra True``,
            contains this. If None, all.
        accuracy: whether to measure the federations' accuracy instead of the victims.
        seeds: number of federations of each filter.
    """
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    results, curves = output / "results.csv", output / "accuracy.csv"
    if accuracy:
        done = {(row["filter"], row["model"], row["seed"]) for row in read(curves)}
        for seed in range(seeds):
            for name, chosen in FILTERS.items():
                needs = chosen.defense is not None and chosen.defense.needs_batch
                if needs or (name, "smlp", str(seed)) in done or (only or "") not in name:
                    continue
                found = accuracies(name, "smlp", seed, data)
                rows = [
                    {"filter": name, "model": "smlp", "seed": seed, "round": at, "accuracy": value}
                    for at, value in enumerate(found, start=1)
                ]
                _append(curves, ACCURACY, rows)
                print(f"{name} seed {seed}: {found[-1]:.3f}", flush=True)
        return
    finished = {(*(row[n] for n in Cell._fields), int(row["victim"])) for row in read(results)}
    for cell in dict.fromkeys(cells()):
        text = tuple(map(str, cell))
        if only is not None and only not in " ".join(text):
            continue
        for at in range(number):
            if (*text, at) in finished:
                continue
            row = measure(cell, at, data, output)
            _append(results, COLUMNS, [row])
            print(*(f"{n}={row[n]!s:.60}" for n in COLUMNS if n != "findings"), flush=True)
    summary = output / "summary.csv"
    summary.unlink(missing_ok=True)
    _append(summary, SUMMARY, summarise(read(results)))
    for name, chosen in FILTERS.items():
        if (epsilon := epsilon_of(chosen, ROUNDS)) is not None:
            print(f"{name}: effective epsilon {epsilon:.3g} after {ROUNDS} rounds")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FEDLEAK_DATA", ".")))
    parser.add_argument("--victims", type=int, default=8)
    parser.add_argument("--only")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    main(given.output, given.data, given.victims, given.only, given.accuracy, given.seeds)
