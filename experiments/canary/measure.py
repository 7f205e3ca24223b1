"""On how many random weights an audit's own client is reconstructed, and how well photographs are.

    python experiments/canary/measure.py --output experiments/canary/results

It appends a row for each client to results.csv and skips what is there already, so that it can be
interrupted. With FEDLEAK_DATA, photographs of CIFAR-10 are taken as well.
"""

import argparse
import csv
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak import GroundTruth, Reconstruction, score_images
from fedleak.attacks import RGAP
from fedleak.audit.canary import REACHED, make_sample
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

NETS = ("max", "average", "sigmoid", "grey", "norm")
COLUMNS = ("net", "sample", "seed", "ssim", "guess", "explained", "seconds", "findings")
RATE = 0.1


class Net(nn.Module):
    """The network of Flower's quickstart, or one like it.

    Args:
        kind: ``max`` (the quickstart's), ``average`` (average pooling), ``sigmoid`` (strided
            convolutions with sigmoid and no pooling), ``grey`` (images of 1 x 28 x 28), or ``norm``
            (batch norms behind the convolutions, in eval mode).
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, channels = kind, 1 if kind == "grey" else 3
        stride = 2 if kind == "sigmoid" else 1
        self.conv1 = nn.Conv2d(channels, 6, 5, stride)
        self.conv2 = nn.Conv2d(6, 16, 5, stride)
        self.pool = nn.AvgPool2d(2) if kind == "average" else nn.MaxPool2d(2)
        norms = [nn.BatchNorm2d(6), nn.BatchNorm2d(16)]
        self.norms = nn.ModuleList(norms if kind == "norm" else [nn.Identity(), nn.Identity()])
        side = 4 if kind == "grey" else 5
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2, self.fc3 = nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, 10)`` of images ``(N, C, H, W)``."""
        for convolution, norm in zip((self.conv1, self.conv2), self.norms, strict=True):
            x = convolution(x)
            if self.kind == "sigmoid":
                x = torch.sigmoid(x)
                continue
            x = self.pool(functional.relu(norm(x)))
        x = functional.relu(self.fc1(x.flatten(1)))
        return self.fc3(functional.relu(self.fc2(x)))


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy of a batch."""
    return functional.cross_entropy(model(batch[0]), batch[1])


def attacked(kind: str, sample: str, seed: int) -> dict[str, str | float | int]:
    """The row of one client: its network's weights, and its sample, are those of a seed."""
    torch.manual_seed(seed)
    model = Net(kind).eval()
    shape = (1, 28, 28) if kind == "grey" else (3, 32, 32)
    facts = Knowledge(
        model, shape, 10, num_samples=1, loss=loss_of, value_range=(-1.0, 1.0),
        protocol="fedavg", learning_rate=RATE, local_steps=1, batch_size=1,
    )  # fmt: skip
    inputs, label = make_sample(facts, None, seed), 0
    guess = torch.zeros_like(inputs)
    if sample == "photograph":
        images = np.load(Path(os.environ["FEDLEAK_DATA"]) / "cifar10.npz")
        chosen = torch.from_numpy(images["test_images"][seed]).permute(2, 0, 1) / 127.5 - 1
        mean = torch.from_numpy(images["train_images"].mean(axis=0)).permute(2, 0, 1) / 127.5 - 1
        inputs, guess, label = chosen[None], mean.float()[None], int(images["test_labels"][seed])
        if kind == "grey":
            inputs, guess = (x.mean(1, keepdim=True)[..., 2:30, 2:30] for x in (inputs, guess))
    labels = torch.tensor([label])
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(
        loss_of(model, (inputs, labels)), list(parameters.values()), allow_unused=True,
        materialize_grads=True,
    )  # fmt: skip
    received = {
        name: value.detach() - RATE * change
        for (name, value), change in zip(parameters.items(), found, strict=True)
    }  # fmt: skip
    update = InterceptedUpdate.of(model, weights=received)
    begun = time.process_time()
    (result,) = RGAP(nra_iterations=1)([update], facts)
    seconds = time.process_time() - begun
    return {
        "net": kind, "sample": sample, "seed": seed, "ssim": round(ssim(inputs, result.inputs), 4),
        "guess": round(ssim(inputs, guess), 4), "explained": round(result.explained, 4),
        "seconds": round(seconds, 1), "findings": "; ".join(result.findings),
    }  # fmt: skip


def ssim(truth: Tensor, found: Tensor) -> float:
    """SSIM of an image ``(1, C, H, W)`` in [-1, 1]."""
    labels, channels = torch.zeros(1, dtype=torch.long), truth.shape[1]
    (score,) = score_images(
        GroundTruth(truth, labels), Reconstruction(found, labels), mean=(0.5,) * channels,
        std=(0.5,) * channels,
    )  # fmt: skip
    return float(score.ssim)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing in the results, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of results.csv")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS)
    parser.add_argument("--samples", nargs="+", default=["canary"], help="canary, photograph")
    parser.add_argument("--seeds", nargs=2, type=int, default=(100, 120), help="first, and end")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / "results.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8"))) if path.is_file() else []
    done = {(row["net"], row["sample"], int(row["seed"])) for row in rows}
    for seed in range(*given.seeds):
        for kind in given.nets:
            for sample in given.samples:
                if (kind, sample, seed) in done:
                    continue
                row = attacked(kind, sample, seed)
                rows.append({name: str(value) for name, value in row.items()})
                with path.open("a", encoding="utf-8", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    if file.tell() == 0:
                        writer.writeheader()
                    writer.writerow(row)
    print("net, sample: n, reconstructed, SSIM (standard deviation), guess, seconds of the CPU")
    for kind, sample in sorted({(row["net"], row["sample"]) for row in rows}):
        of = [row for row in rows if (row["net"], row["sample"]) == (kind, sample)]
        scores = [float(row["ssim"]) for row in of]
        reached = sum(score >= REACHED for score in scores)
        guess, seconds = (
            statistics.fmean(float(row[name]) for row in of) for name in ("guess", "seconds")
        )
        print(
            f"{kind}, {sample}: {len(of)}, {reached}, {statistics.fmean(scores):.3f} "
            f"({statistics.pstdev(scores):.3f}), {guess:.3f}, {seconds:.0f}"
        )


if __name__ == "__main__":
    main()
