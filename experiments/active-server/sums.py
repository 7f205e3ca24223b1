"""What a server reads of the sum over ten clients, as secure aggregation shows it.

    python experiments/active-server/sums.py --output experiments/active-server/results

Ten clients of Flower's quickstart with 4,000 different images each, of CIFAR-10's 50,000 as JPEG.
Their updates go through the quantiser of Flower's SecAgg+ with the default ranges, or with ranges
that the server sets; its masks add up to 0 and are left out. It appends to sums.csv and skips what
is there.
"""

import argparse
import copy
import io
import os
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from PIL import Image
from torch import Tensor

from fedleak.servers.bins import Bins
from fedleak.updates.update import InterceptedUpdate

sys.path.insert(0, str(Path(__file__).parent))
from measure import COLUMNS, Setting, append_row, knowledge, read_rows, scored, untrained
from quickstart import IMAGES, Training, normalised, train

CLIENTS = 10
TARGET = 2**22
"""Flower's default number of steps of the quantiser."""
DEFAULT = 8.0
"""Flower's default clipping range."""
NOISY = 2e-5
"""By how much a bin may turn where the quantiser adds noise."""
SUMS = {
    "exact sum, server's rate": ("server", None),
    "default range, server's rate": ("server", DEFAULT),
    "range set, server's rate": ("server", 2e-17),
    "exact sum, client's rate": ("client", None),
    "default range, client's rate": ("client", DEFAULT),
    "range set, client's rate": ("client", 5e-19),
}


def jpeg_images(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images of ``train`` or ``test`` in ``cifar10_jpeg.tar.gz``, in random order, and labels."""
    images, labels, classes = [], [], list[str]()
    with tarfile.open(folder / "cifar10_jpeg.tar.gz") as archive:
        for item in archive:
            parts = item.name.split("/")
            if not item.isfile() or parts[1] != part:
                continue
            if parts[2] not in classes:
                classes.append(parts[2])
            content = archive.extractfile(item)
            assert content is not None
            with Image.open(io.BytesIO(content.read())) as image:
                images.append(np.asarray(image.convert("RGB")))
            labels.append(classes.index(parts[2]))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return normalised(np.stack(images))[order], torch.tensor(labels)[order]


def aggregated(
    updates: list[dict[str, Tensor]], clipping: float | None, seed: int
) -> dict[str, Tensor]:
    """The mean of the clients' weights as the server gets it.

    Args:
        updates: the weights of each client.
        clipping: range of the quantiser. If None, the mean is exact.
        seed: of the quantiser's rounding.
    """
    if clipping is None:
        return {n: sum(one[n].double() for one in updates) / len(updates) for n in updates[0]}
    np.random.seed(seed)  # noqa: NPY002 - Flower's quantiser draws from numpy's global generator
    total: list[Any] = []
    for one in updates:
        parts = quantize([value.numpy() for value in one.values()], clipping, TARGET)
        parts = [part.astype(np.int64) for part in parts]
        total = [a + b for a, b in zip(total, parts, strict=True)] if total else parts
    means = dequantize([part / len(updates) for part in total], clipping, TARGET)
    return {n: torch.from_numpy(mean) for n, mean in zip(updates[0], means, strict=True)}


def measure(
    name: str, seed: int, data: tuple[Tensor, Tensor], public: Tensor, kept: dict[Any, Any]
) -> dict[str, Any]:
    """One row: ten clients in one setting.

    Args:
        name: the setting.
        seed: number of the repetition.
        data: images and labels of all clients.
        public: public images.
        kept: what the clients returned in settings that differ in the sum alone.
    """
    start = time.perf_counter()
    rate, clipping = SUMS[name]
    setting = Setting(
        Bins(rate=rate, steps=0, tolerance=None if clipping is None else NOISY),
        training=Training(1e-12) if rate == "server" else Training(),
    )
    facts = knowledge(untrained(seed), setting, CLIENTS * IMAGES, CLIENTS)
    if rate not in kept:
        kept[rate] = []
        draw, earlier = torch.Generator().manual_seed(seed), ()
        for number in (1, 2):
            sent = setting.server.craft(facts, public=public, generator=draw, earlier=earlier)
            came = []
            for client in range(CLIENTS):
                own = slice(client * IMAGES, (client + 1) * IMAGES)
                net = copy.deepcopy(facts.model)
                net.load_state_dict(sent.weights)
                order = 100 * seed + 10 * client + number
                came.append(train(net, data[0][own], data[1][own], setting.training, seed=order))
            kept[rate].append((sent, came))
            exact = aggregated(came, None, 0)
            earlier += ((sent, _update(number, sent, exact)),)
    rounds = tuple(
        (sent, _update(number, sent, aggregated(came, clipping, seed)))
        for number, (sent, came) in enumerate(kept[rate], start=1)
    )
    row = scored(setting, facts, rounds, data, public)
    seconds = f"{time.perf_counter() - start:.1f}"
    return {"setting": name, "client": seed} | row | {"seconds": seconds}


def _update(number: int, sent: Any, weights: dict[str, Tensor]) -> InterceptedUpdate:
    return InterceptedUpdate(
        number, 0, "fedavg", CLIENTS * IMAGES, "net", sent.weights, weights, CLIENTS, "mean"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure what sums.csv does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data", type=Path, default=os.environ.get("FEDLEAK_DATA"))
    parser.add_argument("--seeds", type=int, default=3, help="number of repetitions")
    given = parser.parse_args(arguments)
    if given.data is None:
        parser.error("Expected a folder with the data as --data or in FEDLEAK_DATA, got none.")
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / "sums.csv"
    done = {(row["setting"], int(row["client"])) for row in read_rows(path)}
    images, labels = jpeg_images(Path(given.data), "train")
    public, _ = jpeg_images(Path(given.data), "test")
    for seed in range(given.seeds):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        order = order[: CLIENTS * IMAGES]
        kept: dict[Any, Any] = {}
        for name in SUMS:
            if (name, seed) not in done:
                row = measure(name, seed, (images[order], labels[order]), public, kept)
                append_row(path, COLUMNS, row)


if __name__ == "__main__":
    main()
