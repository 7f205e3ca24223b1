"""How many images of a batch are read from one gradient of a perceptron with chosen weights.

    python experiments/active-server/perceptron.py --output experiments/active-server/results

The perceptron 3072-1000-10 gets CIFAR-10 images; `$FEDLEAK_DATA` has cifar10.npz. A row for each
server, size of the batch and seed is appended to perceptron.csv, and what is there is skipped;
perceptron-summary.csv has means and spreads. Public images are those of the test part.
"""

import argparse
import csv
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak import InterceptedUpdate, Knowledge, ssim
from fedleak.servers import Imprint, MaliciousServer, SolitonBiases, TrapWeights
from fedleak.servers.soliton_biases import whitened_directions

sys.path.insert(0, str(Path(__file__).parent))
from honest_models import mlp

SHAPE = (3, 32, 32)
SIZES = (64, 128, 256, 300, 512)
SEEDS = (0, 1, 2, 3, 4)
READ = 0.9
"""SSIM above which an image is read."""
COLUMNS = (
    "server", "batch", "seed", "read", "found", "false", "certified", "false_certified", "labels",
    "guess", "seconds",
)  # fmt: skip
SUMMARY = (
    "server", "batch", "n", "read", "spread", "certified", "false", "false_certified", "labels",
    "guess",
)  # fmt: skip


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The client's loss."""
    return functional.cross_entropy(model(batch[0]), batch[1])


def images(part: str) -> tuple[Tensor, Tensor]:
    """Images normalised to [-1, 1] and labels of ``train`` or ``test``."""
    with np.load(Path(os.environ["FEDLEAK_DATA"]) / "cifar10.npz") as file:
        pixels = torch.tensor(file[f"{part}_images"]).permute(0, 3, 1, 2).contiguous()
        return pixels.float() / 127.5 - 1, torch.tensor(file[f"{part}_labels"]).long()


def one_number(public: Tensor) -> float:
    """The standard deviation of projections of public images, the one number that is told."""
    directions = whitened_directions(1000, SHAPE, torch.Generator().manual_seed(999))
    return float((public.flatten(1) @ directions.T).double().std())


def servers(public: Tensor) -> dict[str, tuple[Callable[[], MaliciousServer], bool]]:
    """Name -> server, and whether it is given the public images."""
    deviation = one_number(public)
    return {
        "bins on brightness": (Imprint, True),
        "trap weights, 1 sample a unit": (lambda: TrapWeights(fires=1.0), True),
        "trap weights, 4 samples a unit": (TrapWeights, True),
        "soliton, the paper's constants, one number": (
            lambda: SolitonBiases(c=0.03, factor=1.0, deviation=deviation), False,
        ),
        "soliton, one number": (lambda: SolitonBiases(deviation=deviation), False),
    }  # fmt: skip


def scores(found: Tensor, truth: Tensor) -> tuple[list[float], list[int]]:
    """Of each image found, SSIM with the nearest true one, and the number of that one."""
    if not len(found):
        return [], []
    nearest = torch.cdist(found.flatten(1), truth.flatten(1)).argmin(1)
    pictures = (found / 2 + 0.5).clamp(0, 1).numpy(), (truth[nearest] / 2 + 0.5).numpy()
    return [ssim(true, one, 1.0) for one, true in zip(*pictures, strict=True)], nearest.tolist()


def measured(
    server: MaliciousServer,
    size: int,
    seed: int,
    private: tuple[Tensor, Tensor],
    public: Tensor | None,
    guesses: Tensor,
) -> dict[str, object]:
    """What a server reads of one batch; the guess is the nearest of the public images."""
    torch.manual_seed(seed)
    model = mlp(3072, 10, 1000)
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(private[0]), generator=draw)[:size]
    inputs, labels = private[0][chosen], private[1][chosen]
    facts = Knowledge(model, SHAPE, 10, (0.5,), (0.5,), num_samples=size, loss=cross_entropy)
    crafted = server.craft(facts, public=public, generator=draw)
    victim = mlp(3072, 10, 1000)
    victim.load_state_dict(crafted.weights)
    names, parameters = zip(*victim.named_parameters(), strict=True)
    gradient = torch.autograd.grad(cross_entropy(victim, (inputs, labels)), parameters)
    received = dict(zip(names, gradient, strict=True))
    update = InterceptedUpdate(1, 0, "fedsgd", size, "mlp", crafted.weights, received)
    start = time.perf_counter()
    reading = server.read(facts, ((crafted, update),), public=public, generator=draw)
    seconds = time.perf_counter() - start
    values, numbers = scores(reading.inputs, inputs)
    good = [value > READ for value in values]
    right = [bool(labels[n] == label) for n, label in zip(numbers, reading.labels, strict=True)]
    read = len({n for n, fits in zip(numbers, good, strict=True) if fits}) / size
    certified = reading.certified.tolist()
    guessed, _ = scores(inputs, guesses)
    return {
        "server": server.name, "batch": size, "seed": seed, "read": f"{read:.4f}",
        "found": len(values), "false": good.count(False), "certified": sum(certified),
        "false_certified": sum(c and not g for c, g in zip(certified, good, strict=True)),
        "labels": f"{statistics.fmean(right) if right else float('nan'):.4f}",
        "guess": f"{statistics.fmean(v > READ for v in guessed):.4f}", "seconds": f"{seconds:.1f}",
    }  # fmt: skip


def summarise(folder: Path) -> None:
    """Write the means over the seeds to perceptron-summary.csv."""
    with (folder / "perceptron.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["server"], row["batch"]), []).append(row)
    with (folder / "perceptron-summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(SUMMARY)
        for (server, batch), found in groups.items():
            read = [float(row["read"]) for row in found]
            share = [int(row["certified"]) / int(batch) for row in found]
            spread = statistics.stdev(read) if len(read) > 1 else 0.0
            line = [
                server, batch, len(found), f"{statistics.fmean(read):.3f}", f"{spread:.3f}",
                f"{statistics.fmean(share):.3f}", sum(int(row["false"]) for row in found),
                sum(int(row["false_certified"]) for row in found),
                f"{statistics.fmean(float(row['labels']) for row in found):.3f}",
                f"{statistics.fmean(float(row['guess']) for row in found):.3f}",
            ]  # fmt: skip
            writer.writerow(line)
            print(*line, sep=" | ")


def main() -> None:
    """Measure what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    path = arguments.output / "perceptron.csv"
    done = set()
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            done = {(row["server"], row["batch"], row["seed"]) for row in csv.DictReader(file)}
    private, (public, _) = images("train"), images("test")
    for name, (make, is_public) in servers(public).items():
        for size in arguments.sizes:
            for seed in arguments.seeds:
                if (name, str(size), str(seed)) in done:
                    continue
                known = public if is_public else None
                row = measured(make(), size, seed, private, known, public) | {"server": name}
                with path.open("a", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    if file.tell() == 0:
                        writer.writeheader()
                    writer.writerow(row)
    summarise(arguments.output)


if __name__ == "__main__":
    main()
