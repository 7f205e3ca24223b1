"""Shares of labels that a listening server infers from clients of Flower's quickstart.

    python experiments/active-server/label_shares.py --output experiments/active-server/results

The audit's own shadow clients and map: 160 shadow clients on CIFAR-10's public test images, 24
clients of 1,600 private images whose shares are drawn from Dirichlet's distribution, one epoch at
the quickstart's rate; then the audit's correction by three passes of three shadow clients for each
client. Before that, ``--rounds`` rounds of federated averaging over five clients of
800 images at rate 0.02 train the model. It appends to label-shares.csv a row for the clients and
one for sums over several of them.
"""

import argparse
import copy
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.audit.label_shares import MOST_SHADOWS, SHADOWS_OF_A_CLIENT
from fedleak.audit.shadow_clients import (
    LabelShares,
    Shadow,
    sum_shadows,
    total_variation_distance,
    train_shadows,
)
from fedleak.audit.share_correction import correct_shares
from fedleak.runtime.seeds import derive_seed
from fedleak.updates.local_training import LocalTraining

sys.path.insert(0, str(Path(__file__).parent))
from measure import append_row, untrained
from quickstart import Training, normalised, train

LAYER, CLASSES = "fc3", 10
CONCENTRATION = 0.5
CLIENTS, IMAGES = 24, 1600
SUMS = (2, 4, 10)
COLUMNS = (
    "rounds", "seed", "clients_in_sum", "passes", "n", "distance", "spread", "equal_shares",
    "worse", "left_out_shadows", "regressor",
)  # fmt: skip

Images = tuple[Tensor, Tensor]


def images(folder: Path, part: str) -> Images:
    """Images and labels of CIFAR-10, of the part ``train`` (private) or ``test`` (public)."""
    with np.load(folder / "cifar10.npz") as arrays:
        labels = torch.from_numpy(arrays[f"{part}_labels"].astype(np.int64))
        return normalised(arrays[f"{part}_images"]), labels


def clients(
    data: Images, number: int, size: int, draw: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images, labels and shares of clients; an image occurs twice where a class has too few."""
    pools = [np.flatnonzero(data[1].numpy() == label) for label in range(CLASSES)]
    for _ in range(number):
        counts = draw.multinomial(size, draw.dirichlet(np.full(CLASSES, CONCENTRATION)))
        chosen = np.concatenate([
            draw.choice(pool, count, replace=count > len(pool))
            for pool, count in zip(pools, counts, strict=True)
        ])  # fmt: skip
        yield data[0][chosen], data[1][chosen], torch.from_numpy(counts / size)


def global_model(data: Images, rounds: int, seed: int) -> nn.Module:
    """The model after some rounds of federated averaging."""
    net, draw = untrained(seed), np.random.default_rng(50 + seed)
    own = list(clients(data, 5, 800, draw))
    for number in range(rounds):
        found = [
            train(copy.deepcopy(net), inputs, labels, Training(0.02), seed=10 * number + at)
            for at, (inputs, labels, _) in enumerate(own)
        ]
        net.load_state_dict({n: torch.stack([one[n] for one in found]).mean(0) for n in found[0]})
    return net


def victims(net: nn.Module, data: Images, seed: int) -> list[Shadow]:
    """The changes of the last layer that clients send, and their true shares."""
    sent, found = net.state_dict(), []
    own = clients(data, CLIENTS, IMAGES, np.random.default_rng(900 + seed))
    for at, (inputs, labels, shares) in enumerate(own):
        new = train(copy.deepcopy(net), inputs, labels, Training(), seed=1000 + at)
        names = (f"{LAYER}.weight", f"{LAYER}.bias")
        found.append(Shadow({name: new[name] - sent[name] for name in names}, shares))
    return found


def shadows(
    net: nn.Module,
    public: Images,
    seed: int,
    number: int = MOST_SHADOWS,
    shares: Tensor | None = None,
) -> list[Shadow]:
    """The audit's shadow clients, of given shares of labels or of Dirichlet's."""
    training = LocalTraining(learning_rate=0.1, momentum=0.9, batch_size=32, epochs=1)
    sent = {name: value.detach().clone() for name, value in net.state_dict().items()}
    return list(
        train_shadows(
            net, sent, _loss, training, *public, samples=IMAGES, classes=CLASSES, number=number,
            layer=LAYER, shares=shares, seed=seed,
        )
    )  # fmt: skip


def shadows_of_clients(
    net: nn.Module, public: Images, seed: int, shares: Tensor, number: int
) -> list[Shadow]:
    """Those of a pass of the correction, with the shares of labels that were found."""
    own = derive_seed(seed, number)
    return shadows(net, public, own, SHADOWS_OF_A_CLIENT * len(shares), shares)


def _loss(model: nn.Module, batch: Images) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def groups(number: int) -> list[list[int]]:
    """Which clients are added up: each once, or for more than six six draws of so many."""
    if number <= 6:
        return [list(range(at, at + number)) for at in range(0, CLIENTS, number)]
    draws = (torch.Generator().manual_seed(at) for at in range(6))
    return [torch.randperm(CLIENTS, generator=draw)[:number].tolist() for draw in draws]


def scored(
    known: list[Shadow],
    asked: list[Shadow],
    train: Callable[[Tensor, int], list[Shadow]],
) -> Iterator[dict[str, Any]]:
    """A row for single clients, one for each pass of their correction, and one for each sum."""
    truth = torch.stack([one.shares for one in asked])
    for number in (1, *SUMS):
        weights = [1 / number] * number
        learned = LabelShares.fit(
            known if number == 1 else sum_shadows(known, LAYER, weights), LAYER
        )
        changes, shares = [], []
        for members in groups(number):
            names = asked[0].change
            changes.append({
                n: torch.stack([asked[at].change[n].double() for at in members]).mean(0)
                for n in names
            })  # fmt: skip
            shares.append(truth[members].mean(0))
        right, found = torch.stack(shares), [learned(changes)]
        if number == 1:
            found = corrected(found[0], learned, train)
        for passes, answer in enumerate(found):
            yield {"clients_in_sum": number, "passes": passes} | _row(answer, right, learned)


def corrected(
    found: Tensor, learned: LabelShares, train: Callable[[Tensor, int], list[Shadow]]
) -> list[Tensor]:
    """Shares of labels before the audit's correction and after each of its passes."""
    before: list[Tensor] = []

    def noted(shares: Tensor, number: int) -> list[Shadow]:
        before.append(shares)
        return train(shares, number)

    last, _ = correct_shares(found, learned, noted)
    return [*before, last]


def _row(found: Tensor, right: Tensor, learned: LabelShares) -> dict[str, Any]:
    """What shares come to that were found, beside equal ones."""
    distance = total_variation_distance(found, right)
    equal = total_variation_distance(torch.full_like(right, 1 / CLASSES), right)
    return {
        "n": len(distance), "distance": f"{float(distance.mean()):.3f}",
        "spread": f"{float(distance.std()):.3f}", "equal_shares": f"{float(equal.mean()):.3f}",
        "worse": int((distance > equal).sum()), "left_out_shadows": f"{learned.error:.3f}",
        "regressor": learned.regressor,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Train, infer and score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data", type=Path, default=os.environ.get("FEDLEAK_DATA"))
    parser.add_argument("--rounds", type=int, nargs="*", default=[5])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    given = parser.parse_args(arguments)
    if given.data is None:
        parser.error("Expected a folder with cifar10.npz as --data or in FEDLEAK_DATA, got none.")
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    private, public = (images(Path(given.data), part) for part in ("train", "test"))
    for rounds in given.rounds:
        for seed in given.seeds:
            net = global_model(private, rounds, seed)
            train = partial(shadows_of_clients, net, public, seed)
            for row in scored(shadows(net, public, seed), victims(net, private, seed), train):
                append_row(
                    given.output / "label-shares.csv", COLUMNS,
                    {"rounds": rounds, "seed": seed} | row,
                )  # fmt: skip


if __name__ == "__main__":
    main()
