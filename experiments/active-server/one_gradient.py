"""What is read of one gradient of a convolutional network by a module in front, and by fishing.

    python experiments/active-server/one_gradient.py --output experiments/active-server/results

The network is that of Flower's quickstart, untrained; a batch is of different CIFAR-10 images and
gives one float32 gradient. A row for each server, size of the batch and seed is appended to
one-gradient.csv, and what is there is skipped; one-gradient-summary.csv has means and spreads. The
guard looks at each model with 256 images that are neither in the batch nor public.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedleak import InterceptedUpdate, Knowledge, inspect_model
from fedleak.servers import Fishing, ImprintModule, MaliciousServer
from fedleak.servers.conv_network import with_weights

sys.path.insert(0, str(Path(__file__).parent))
from honest_models import OWN
from measure import append_row, read_rows
from perceptron import READ, SHAPE, cross_entropy, images, scores
from quickstart import Net

UNITS = 1000
COLUMNS = (
    "server", "batch", "seed", "of_class", "found", "read", "certified", "false_certified",
    "feature_error", "ssim", "guess", "suspicious", "seconds",
)  # fmt: skip
SUMMARY = (
    "server", "batch", "n", "share_read", "spread", "batches_with_one", "certified",
    "false_certified", "ssim", "ssim_spread", "guess", "suspicious",
)  # fmt: skip
# The class that is fished for is the seed's, so that none is chosen by its result.
PLAN = {
    "imprint_module": ((16, 64, 128, 256, 512), 3), "fishing": ((16, 64), 9),
}  # fmt: skip


def server_of(name: str, seed: int) -> MaliciousServer:
    """The server of a row."""
    if name == "fishing":
        return Fishing(target_class=seed % 10, steps=0)
    return ImprintModule(units=UNITS)


def network(server: MaliciousServer, seed: int) -> nn.Module:
    """The global model as the clients are given it."""
    torch.manual_seed(seed)
    return server.changed_model(Net(), SHAPE)


def measured(
    name: str, size: int, seed: int, private: tuple[Tensor, Tensor], public: Tensor
) -> dict[str, Any]:
    """What a server reads of one batch; the guess is the mean public image."""
    server, start = server_of(name, seed), time.perf_counter()
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(private[0]), generator=draw)
    inputs, labels = private[0][order[:size]], private[1][order[:size]]
    model = network(server, seed)
    facts = Knowledge(
        model, SHAPE, 10, (0.5,) * 3, (0.5,) * 3, num_samples=size, loss=cross_entropy
    )
    crafted = server.craft(facts, public=public, generator=draw)
    victim = with_weights(model, dict(crafted.weights)).requires_grad_(True)
    names, parameters = zip(*victim.named_parameters(), strict=True)
    gradient = torch.autograd.grad(cross_entropy(victim, (inputs, labels)), parameters)
    received = dict(zip(names, gradient, strict=True))
    update = InterceptedUpdate(1, 0, "fedsgd", size, "net", crafted.weights, received)
    reading = server.read(facts, ((crafted, update),), public=public, generator=draw)
    found, error = reading.inputs, float("nan")
    sure = reading.certified
    true = server.features_of(victim.requires_grad_(False), inputs)
    if true is not None and len(found):
        # The nearest of all images: with the wrong one it would be far off.
        distance = torch.cdist(reading.features.double(), true.double()) / true.norm(dim=1).double()
        errors, nearest = distance.min(1)
        error, good = float(errors.max()), (errors < 1e-3).tolist()
        values, _ = scores(found, inputs[nearest])
    else:
        values, numbers = scores(found, inputs)
        nearest, good = torch.tensor(numbers, dtype=torch.long), [value > READ for value in values]
    guesses, _ = scores(public.mean(0, keepdim=True).expand(len(found), *SHAPE), inputs[nearest])
    own = private[0][order[-OWN:]]
    return {
        "server": name, "batch": size, "seed": seed,
        "of_class": int((labels == seed % 10).sum()) if name == "fishing" else "",
        "found": len(found),
        "read": len({n for n, fits in zip(nearest.tolist(), good, strict=True) if fits}),
        "certified": int(sure.sum()),
        "false_certified": sum(
            c and not fits for c, fits in zip(sure.tolist(), good, strict=True)
        ),
        "feature_error": f"{error:.1e}", "ssim": _mean(values), "guess": _mean(guesses),
        "suspicious": int(inspect_model(victim, batch=own).suspicious),
        "seconds": f"{time.perf_counter() - start:.1f}",
    }  # fmt: skip


def _mean(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4f}" if values else ""


def summarise(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Means and spreads over the seeds."""
    found = []
    for server, batch in dict.fromkeys((row["server"], row["batch"]) for row in rows):
        own = [row for row in rows if (row["server"], row["batch"]) == (server, batch)]
        read = [int(row["read"]) / int(batch) for row in own]
        pictures, guesses = (
            [float(row[part]) for row in own if row[part]] for part in ("ssim", "guess")
        )
        found.append({
            "server": server, "batch": batch, "n": len(own),
            "share_read": f"{statistics.fmean(read):.3f}",
            "spread": f"{statistics.stdev(read) if len(read) > 1 else 0:.3f}",
            "batches_with_one": sum(int(row["read"]) >= 1 for row in own),
            "certified": sum(int(row["certified"]) for row in own),
            "false_certified": sum(int(row["false_certified"]) for row in own),
            "ssim": f"{statistics.fmean(pictures):.3f}" if pictures else "",
            "ssim_spread": f"{statistics.stdev(pictures):.3f}" if len(pictures) > 1 else "",
            "guess": f"{statistics.fmean(guesses):.3f}" if guesses else "",
            "suspicious": sum(int(row["suspicious"]) for row in own),
        })  # fmt: skip
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    path = given.output / "one-gradient.csv"
    done = {(row["server"], row["batch"], row["seed"]) for row in read_rows(path)}
    private, (public, _) = images("train"), images("test")
    for name, (sizes, seeds) in PLAN.items():
        for seed in range(seeds):
            for size in sizes:
                if (name, str(size), str(seed)) not in done:
                    append_row(path, COLUMNS, measured(name, size, seed, private, public))
    summary = given.output / "one-gradient-summary.csv"
    summary.unlink(missing_ok=True)
    for line in summarise(read_rows(path)):
        append_row(summary, SUMMARY, line)


if __name__ == "__main__":
    main()
