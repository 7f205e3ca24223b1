"""How many images of a client a server reads that chooses parameters, and whether it knows which.

    python experiments/active-server/measure.py --output experiments/active-server/results

A row for each setting and client: the server asks a client of Flower's quickstart, untrained, in
two rounds, and reads. It appends to clients.csv and skips what is there, so that it can be
interrupted; summary.csv has means and spreads. ``--only`` takes some settings.
"""

import argparse
import copy
import csv
import os
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.servers.bin_thresholds import Division
from fedleak.servers.bins import Bins, bin_sums
from fedleak.servers.certificate import turned
from fedleak.servers.conv_network import encoder_features, find_network, with_weights
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.update import InterceptedUpdate

# Run as a script or imported by a test, the module beside this one is the same.
sys.path.insert(0, str(Path(__file__).parent))
from quickstart import IMAGES, MEAN, STD, Net, Training, client_images, public_images, train

SHAPE = (3, 32, 32)
READ = 1e-5
"""An image is read where 1 - cos of its features is below this."""
COLUMNS = (
    "setting", "client", "bins", "alone", "several", "read", "read_loosely", "median_turn",
    "certified", "false", "labels", "labels_right", "largest_entry", "seconds",
)  # fmt: skip
SUMMARY = (
    "setting", "clients", "alone", "alone_spread", "read", "read_spread", "read_loosely",
    "read_loosely_spread", "median_turn", "certified", "certified_spread", "false", "several",
    "labels", "labels_right",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A row of the table.

    Args:
        server: the server.
        facts: what it knows of the client's training.
        training: the client's training.
    """

    server: Bins
    facts: dict[str, Any] = field(default_factory=lambda: {"optimizer": "sgd", "momentum": 0.9})
    training: Training = field(default_factory=Training)


def sgd(**settings: float) -> Any:
    """SGD with momentum and other settings."""
    return lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=0.9, **settings)


def adam(kind: Any, **settings: float) -> Any:
    """Adam or AdamW with other settings."""
    return lambda parameters, rate: kind(parameters, lr=rate, **settings)


DECAY = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
SETTINGS = {
    "server's rate 1e-12": Setting(Bins(rate="server", steps=0), training=Training(1e-12)),
    "client's rate 0.1": Setting(Bins(steps=0)),
    "client's rate 0.1, clipped to 1": Setting(Bins(steps=0), training=Training(clip=1.0)),
    "client's rate 0.1, clipped to 0.1": Setting(Bins(steps=0), training=Training(clip=0.1)),
    "client's rate 0.1, weight decay 5e-4": Setting(
        Bins(steps=0), DECAY, Training(optimizer=sgd(weight_decay=5e-4))
    ),
    "Adam 1e-3": Setting(
        Bins(steps=0), {"optimizer": "adam"}, Training(1e-3, adam(torch.optim.Adam))
    ),
    "AdamW 1e-3, weight decay 1e-2": Setting(
        Bins(steps=0), {"optimizer": "adamw", "weight_decay": 1e-2},
        Training(1e-3, adam(torch.optim.AdamW, weight_decay=1e-2)),
    ),
    "Adam 1e-3, clipped to 1": Setting(
        Bins(steps=0), {"optimizer": "adam"}, Training(1e-3, adam(torch.optim.Adam), clip=1.0)
    ),
    "server's rate 1e-12, one class": Setting(
        Bins(rate="server", steps=0, only_class=3), training=Training(1e-12)
    ),
}  # fmt: skip


def knowledge(model: nn.Module, setting: Setting, samples: int, clients: int = 1) -> Knowledge:
    """What the server knows."""
    training = LocalTraining(
        learning_rate=setting.training.rate, batch_size=32, epochs=1, **setting.facts
    )
    return Knowledge(
        model, SHAPE, 10, MEAN, STD, num_samples=samples, protocol="fedavg",
        local_training=training, clients=clients,
    )  # fmt: skip


def untrained(seed: int) -> Net:
    """The global model of the first round."""
    torch.manual_seed(seed)
    return Net()


Rounds = tuple[tuple[Any, InterceptedUpdate], ...]


def asked(
    setting: Setting, facts: Knowledge, data: tuple[Tensor, Tensor], public: Tensor, seed: int
) -> Rounds:
    """What is sent to a client in two rounds, and what comes back."""
    found: Rounds = ()
    draw = torch.Generator().manual_seed(seed)
    for number in (1, 2):
        sent = setting.server.craft(facts, public=public, generator=draw, earlier=found)
        net = copy.deepcopy(facts.model)
        net.load_state_dict(sent.weights)
        came = train(net, *data, setting.training, seed=10 * seed + number)
        update = InterceptedUpdate(number, 0, "fedavg", len(data[0]), "net", sent.weights, came)
        found += ((sent, update),)
    return found


def scored(
    setting: Setting, facts: Knowledge, rounds: Rounds, data: tuple[Tensor, Tensor], public: Tensor
) -> dict[str, Any]:
    """What the server read of the samples of one client, or of several together.

    Args:
        setting: the row of the table.
        facts: what the server knows.
        rounds: what was sent and what came back.
        data: images and labels of all clients.
        public: public images.
    """
    reading = setting.server.read(
        facts, rounds, public=public, generator=torch.Generator().manual_seed(0)
    )
    network = find_network(facts.model, SHAPE)
    model = with_weights(facts.model, rounds[0][0].weights)
    features = encoder_features(model, network, data[0]).double()
    division = Division.from_memory(rounds[0][0].memory)
    place = torch.bucketize(division.of(features).contiguous(), division.thresholds)
    images = torch.bincount(place, minlength=network.units + 1)[1 : network.units]
    features[:, division.columns] = 0
    sums, filled = bin_sums(facts, *rounds[0], network, division.columns)
    error, image = nearest(sums[filled], features)
    own_error, own_image = nearest(reading.features, features)
    sure = reading.certified & (own_error < READ)
    close = error < 1e-3
    single = sums[filled][error < READ]
    return {
        "bins": len(images), "alone": int((images == 1).sum()), "several": int((images > 1).sum()),
        "read": len(image[error < READ].unique()), "read_loosely": len(image[close].unique()),
        "median_turn": f"{float(error[close].median()) if bool(close.any()) else 1.0:.1e}",
        "certified": int(sure.sum()), "false": int((reading.certified & ~sure).sum()),
        "labels": int((reading.labels[sure] >= 0).sum()),
        "labels_right": int((reading.labels[sure] == data[1][own_image[sure]]).sum()),
        "largest_entry": f"{float(single.abs().max()) if len(single) else 0.0:.1e}",
    }  # fmt: skip


def nearest(found: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """1 - cos to the image whose features are nearest in direction, and its number."""
    size = found.double().abs().amax(dim=1, keepdim=True).clamp(min=5e-324)
    unit = nn.functional.normalize(found.double() / size, dim=1)
    image = (unit @ nn.functional.normalize(features, dim=1).T).abs().argmax(dim=1)
    return turned(found, features[image]), image


def measure(name: str, client: int, folder: Path) -> dict[str, Any]:
    """One row: one client in one setting.

    Args:
        name: the setting.
        client: number of the client.
        folder: the data.
    """
    start = time.perf_counter()
    setting, data, public = SETTINGS[name], client_images(folder, client), public_images(folder)
    facts = knowledge(untrained(client), setting, IMAGES)
    rounds = asked(setting, facts, data, public, client)
    if (one := setting.server.only_class) is not None:
        data = data[0][data[1] == one], data[1][data[1] == one]
    row = scored(setting, facts, rounds, data, public)
    seconds = f"{time.perf_counter() - start:.1f}"
    return {"setting": name, "client": client} | row | {"seconds": seconds}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if it is missing."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, columns: Iterable[str], row: dict[str, Any]) -> None:
    """Append a row to a CSV file, and print it."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(*(f"{name}={value}" for name, value in row.items()), flush=True)


def summarise(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Means and standard deviations over the clients of each setting; counts are added up."""
    found = []
    for name in dict.fromkeys(row["setting"] for row in rows):
        own = [row for row in rows if row["setting"] == name]
        summary: dict[str, Any] = {"setting": name, "clients": len(own)}
        for column in ("alone", "read", "read_loosely", "certified"):
            values = [float(row[column]) for row in own]
            summary[column] = f"{statistics.fmean(values):.1f}"
            if f"{column}_spread" in SUMMARY:
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                summary[f"{column}_spread"] = f"{spread:.1f}"
        summary["median_turn"] = (
            f"{statistics.median(float(row['median_turn']) for row in own):.0e}"
        )
        for column in ("false", "several", "labels", "labels_right"):
            summary[column] = sum(int(row[column]) for row in own)
        found.append(summary)
    return found


def write_summary(rows: list[dict[str, str]], path: Path) -> None:
    """Write the means to a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, SUMMARY, lineterminator="\n")
        writer.writeheader()
        writer.writerows(summarise(rows))


def main(arguments: list[str] | None = None) -> None:
    """Measure what clients.csv does not have yet, and summarise all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data", type=Path, default=os.environ.get("FEDLEAK_DATA"))
    parser.add_argument("--clients", type=int, default=5, help="number of clients")
    parser.add_argument("--only", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    given = parser.parse_args(arguments)
    if given.data is None:
        parser.error("Expected a folder with cifar10.npz as --data or in FEDLEAK_DATA, got none.")
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / "clients.csv"
    done = {(row["setting"], int(row["client"])) for row in read_rows(path)}
    for client in range(given.clients):
        for name in given.only:
            if (name, client) not in done:
                append_row(path, COLUMNS, measure(name, client, Path(given.data)))
    write_summary(read_rows(path), given.output / "summary.csv")


if __name__ == "__main__":
    main()
