"""One user of a federated recommender under attack, and a round of 128 users."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from benchmarks.common import Entry, seconds_of, threads_text
from fedleak import experiment
from fedleak.attacks import NRA
from fedleak.config import Federation, RunConfig, Victims
from fedleak.data import LastFM, PlantedGroups, RecommenderData
from fedleak.metrics import score_items
from fedleak.models import FedVAE
from fedleak.models.noise import inject, record
from fedleak.registry import Plugin
from fedleak.runs.observer import Observer
from fedleak.updates.knowledge import Knowledge, batch_loss
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate

LISTENS = "lastfm_user_artists.dat"
# As many users, items and interactions as Last.fm has.
SAME_SIZE: dict[str, Any] = {
    "users": 1877, "items": 16423, "groups": 10, "items_per_user": 49, "held_out": 100,
}  # fmt: skip
PAUSE = 0.2


def recommender(small: bool) -> tuple[RecommenderData, dict[str, Any], str]:
    """Last.fm where FEDLEAK_DATA has it, or as many made-up users; or a few of them.

    Returns:
        The data, the settings that make it, and what to call it.
    """
    folder = os.environ.get("FEDLEAK_DATA")
    if small:
        settings: dict[str, Any] = {"users": 150, "items": 80, "held_out": 10}
        return PlantedGroups(**settings), settings, "150 made-up users, 80 items"
    if folder and (Path(folder) / LISTENS).is_file():
        settings = {"path": str(Path(folder) / LISTENS)}
        return LastFM(**settings), settings, "Last.fm (1,877 users, 16,423 items)"
    return PlantedGroups(**SAME_SIZE), SAME_SIZE, "made-up users, as many as Last.fm has"


def fedvae_attack_seconds(
    iterations: int = 300, users: int = 8, plain: int = 5, small: bool = False
) -> Entry:
    """Seconds that NRA takes for a user, of several together, beside a plain autograd loop.

    Args:
        iterations: of the attack.
        users: number of users that are attacked together.
        plain: iterations of the plain loop that are timed.
        small: whether to take a few made-up users.
    """
    data, _, name = recommender(small)
    torch.manual_seed(0)
    model = FedVAE(input_shape=(data.input_shape[0],), dropout=0.0).train()
    parameters = dict(model.named_parameters())
    sent = {n: value.clone() for n, value in model.state_dict().items()}
    updates, truths = [], []
    for user in range(users):
        inputs, labels = data.train_set.batch([user])
        with record(model) as drawn:
            loss = batch_loss(model, (inputs, labels))
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        received = dict(zip(parameters, gradients, strict=True))
        updates.append(InterceptedUpdate(1, user, "fedsgd", 1, "fedvae", sent, received))
        truths.append(GroundTruth(inputs, labels, {n: values[0] for n, values in drawn.items()}))
    knowledge = Knowledge(model, data.input_shape, 1, labels=truths[0].labels)
    attack = NRA(
        iterations=iterations, learning_rate=0.03, cost="relative_error", total_variation=0.0,
        at_once=users,
    )  # fmt: skip
    found: list[Any] = []
    seconds = seconds_of(lambda: found.extend(attack(updates, knowledge))) / users
    f1 = [score_items(*pair)[0].f1 for pair in zip(truths, found, strict=True)]
    alone = seconds_of(lambda: attack(updates[:1], knowledge))
    slow = seconds_of(lambda: _plain_attack(model, updates[0], truths[0].labels, plain))
    ratio = slow / plain * iterations / seconds
    return {
        "value": seconds,
        "unit": "seconds a user",
        "setting": f"NRA (relative error, signed Adam 0.03 with decay, {iterations} iterations) on "
        f"{users} users of an untrained FedVAE without dropout together, {name}, "
        f"{threads_text()}, one alone {alone:.1f} s; "
        f"F1 {sum(f1) / users:.4f} (mean); a plain autograd loop with whole gradients takes "
        f"{ratio:.1f} times as long (from {plain} iterations on one)",
    }


def _plain_attack(model: FedVAE, update: InterceptedUpdate, labels: Tensor, steps: int) -> None:
    target = [update.received[name] for name, _ in model.named_parameters()]
    inputs = torch.rand(1, target[0].shape[1]).requires_grad_()
    noise = torch.randn(1, target[-4].shape[1]).requires_grad_()
    optimizer = torch.optim.Adam([inputs, noise], lr=0.01)
    for _ in range(steps):
        with inject(model, {"noise": noise}):
            loss = batch_loss(model, (inputs, labels))
        dummy = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        cost = sum(
            (d - t).square().sum() / t.square().sum() for d, t in zip(dummy, target, strict=True)
        )
        gradients = torch.autograd.grad(cost, [inputs, noise])
        inputs.grad, noise.grad = gradients[0].sign(), gradients[1]
        optimizer.step()
        with torch.no_grad():
            inputs.clamp_(0, 1)


class _Clock(Observer):
    """When the rounds of a federation ended."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def round_evaluated(self, model: str, round_: int, metrics: Mapping[str, float]) -> None:
        """See :class:`Observer`."""
        self.ended.append(time.perf_counter())


class _Measured(NamedTuple):
    """Seconds of a round and peak in GB, both of the federation and of the plain loop."""

    seconds: float
    peak: float
    plain_seconds: float
    plain_peak: float
    setting: str


_measured: dict[tuple[int, bool], _Measured] = {}


def _round(users: int, small: bool) -> _Measured:
    """A round of a federation, and the same in a plain loop; measured once."""
    key = (users, small)
    if key not in _measured:
        data, settings, name = recommender(small)
        clock, peak = _federation(type(data), settings, users)
        # The workers start in the first round, and the last one is evaluated.
        seconds = clock.ended[2] - clock.ended[1]
        with _peak() as plain_peak:
            plain = seconds_of(lambda: _plain_round(data, users))
        setting = (
            f"a round of {users} users by Flower on Ray, FedSGD with FedAdam, FedVAE with dropout "
            f"0.5, {name}, {os.cpu_count()} cores"
        )
        _measured[key] = _Measured(seconds, peak, plain, plain_peak[0], setting)
    return _measured[key]


def _federation(
    kind: type[RecommenderData], settings: dict[str, Any], users: int
) -> tuple[_Clock, float]:
    """When three rounds of so many users ended, and the peak in GB; a client for each user."""
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            data=Plugin(f"{kind.__module__}.{kind.__name__}", settings),
            model=Plugin("fedleak.models.fedvae.FedVAE"),
            output=str(Path(folder) / "run"),
            federation=Federation(
                clients=len(kind(**settings).train_set), clients_per_round=users,
                partition="one_each", rounds=3, evaluate_every=3, strategy="FedAdam",
                strategy_options={"eta": 0.001, "tau": 1e-8},
            ),
            victims=Victims(clients=[0], rounds=[1]),
        )  # fmt: skip
        with _peak() as peak:
            experiment.run(config, [clock])
    return clock, peak[0]


def fedvae_round_seconds(users: int = 128, small: bool = False) -> Entry:
    """Wall time of a federated round, beside the same in a plain loop in one process.

    Args:
        users: number of users of a round.
        small: whether to take a few made-up users.
    """
    found = _round(users, small)
    ratio = found.seconds / found.plain_seconds
    return {
        "value": found.seconds,
        "unit": "seconds a round",
        "setting": f"{found.setting}; the second of three rounds, which is not evaluated; "
        f"{ratio:.1f} times as long as the same gradients one by one, summed, and Adam's "
        f"step in a plain torch loop ({found.plain_seconds:.1f} s, {threads_text()})",
    }


def fedvae_round_peak_gb(users: int = 128, small: bool = False) -> Entry:
    """Peak memory of a federation with such rounds, beside that of a plain loop.

    Args:
        users: number of users of a round.
        small: whether to take a few made-up users.
    """
    found = _round(users, small)
    return {
        "value": found.peak,
        "unit": "GB",
        "setting": f"{found.setting}: the highest sum of the processes' proportional set sizes "
        f"over the whole run, looked at every {PAUSE:g} s; {found.peak / found.plain_peak:.1f} "
        f"times that of a plain torch loop, which adds the gradients up ({found.plain_peak:.1f} "
        "GB)",
    }


def fedvae_users_peak_ratio(few: int = 1000, times: int = 10, users: int = 64) -> Entry:
    """Peak memory of a federation of ten times as many users, over that of a few.

    Args:
        few: number of users, those held out included.
        times: how many times as many the others are.
        users: number of users of a round.
    """
    sizes: dict[str, Any] = {"items": 2000, "held_out": few // 20}
    peaks = [
        _federation(PlantedGroups, sizes | {"users": count}, users)[1]
        for count in (few, times * few)
    ]
    return {
        "value": peaks[1] / peaks[0],
        "unit": f"times the peak memory for {times} times the users",
        "setting": f"{times * few:,} made-up users and {few:,}, {sizes['items']:,} items, a client "
        f"for each but those held out, three rounds of {users} by Flower on Ray, FedVAE with "
        f"dropout 0.5: {peaks[1]:.2f} GB and {peaks[0]:.2f} GB over the whole runs",
    }


def _plain_round(data: RecommenderData, users: int) -> None:
    model = FedVAE(input_shape=(data.input_shape[0],)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for user in range(users):
        (batch_loss(model, data.train_set.batch([user])) / len(data.train_set)).backward()
    optimizer.step()


@contextmanager
def _peak() -> Iterator[list[float]]:
    """The peak, in GB, of what this process and its children hold within the block."""
    peak, done = [0.0], threading.Event()

    def look() -> None:
        while True:
            total = 0
            me = psutil.Process()
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except (psutil.Error, AttributeError):
                    continue
            peak[0] = max(peak[0], total / 1e9)
            if done.wait(PAUSE):
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
