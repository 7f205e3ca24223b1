"""The attack on users of a federated recommender, and the cost of a round of 128 users."""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from benchmarks import reference
from benchmarks.measure import Facts, Figure, in_turns, median, ratios, seconds_of
from fedleak import experiment
from fedleak.attacks import NRA
from fedleak.config import Federation, RunConfig, Victims
from fedleak.data import LastFM, PlantedGroups, RecommenderData
from fedleak.metrics import score_items
from fedleak.models import FedVAE
from fedleak.models.noise import record
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


class _Users(NamedTuple):
    """Users of an untrained FedVAE without dropout: updates, truths, and what the server knows."""

    updates: list[InterceptedUpdate]
    truths: list[GroundTruth]
    knowledge: Knowledge
    data: str


def _users(count: int, small: bool) -> _Users:
    data, _, name = recommender(small)
    torch.manual_seed(0)
    model = FedVAE(input_shape=(data.input_shape[0],), dropout=0.0).train()
    parameters = dict(model.named_parameters())
    sent = {n: value.clone() for n, value in model.state_dict().items()}
    updates, truths = [], []
    for user in range(count):
        inputs, labels = data.train_set.batch([user])
        with record(model) as drawn:
            loss = batch_loss(model, (inputs, labels))
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        received = dict(zip(parameters, gradients, strict=True))
        updates.append(InterceptedUpdate(1, user, "fedsgd", 1, "fedvae", sent, received))
        truths.append(GroundTruth(inputs, labels, {n: values[0] for n, values in drawn.items()}))
    return _Users(
        updates,
        truths,
        Knowledge(
            model, data.input_shape, 1, labels=truths[0].labels, value_range=data.value_range
        ),
        name,
    )


def _attack(iterations: int, at_once: int) -> NRA:
    return NRA(
        iterations=iterations, learning_rate=0.03, cost="relative_error", total_variation=0.0,
        at_once=at_once,
    )  # fmt: skip


def _setting(users: _Users, iterations: int) -> Facts:
    return {
        "attack": "nra (relative error, signed Adam 0.03 with decay)",
        "model": "FedVAE without dropout, untrained", "data": users.data, "batch_size": 1,
        "iterations": iterations, "threads": torch.get_num_threads(),
    }  # fmt: skip


def fedvae_attack_speedup(
    iterations: int = 300, repetitions: int = 3, warm_up: int = 5, small: bool = False
) -> Figure:
    """Iterations per second of NRA on one user alone, over those of a plain loop on that user.

    Args:
        iterations: of both sides.
        repetitions: number of timed calls of each side.
        warm_up: iterations of the call of each side that is not timed.
        small: whether to take a few made-up users.
    """
    users = _users(1, small)
    model, (update,), (truth,) = users.knowledge.model, users.updates, users.truths
    target = tuple(update.received[name] for name, _ in model.named_parameters())
    start = torch.rand(truth.inputs.shape, generator=torch.Generator().manual_seed(0))
    noise = {
        name: torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        for name, value in truth.noise.items()
    }

    def plain(number: int) -> None:
        reference.attack(
            model, target, truth.labels, start, (torch.zeros(()), torch.ones(())),
            iterations=number, noise=noise, learning_rate=0.03, total_variation=0.0,
            cost=reference.relative_error,
        )  # fmt: skip

    def engine(number: int) -> None:
        _attack(number, 1)([update], users.knowledge)

    seconds = in_turns(
        {"plain": lambda: plain(iterations), "engine": lambda: engine(iterations)},
        repetitions,
        {"plain": lambda: plain(warm_up), "engine": lambda: engine(warm_up)},
    )
    samples = ratios(seconds["plain"], seconds["engine"])
    return Figure(
        value=median(samples),
        unit="times the iterations per second of the plain loop, one user each",
        samples=samples,
        of="pairs of calls in turn",
        setting=_setting(users, iterations) | {"users": 1},
        details={f"{name}_seconds": median(values) for name, values in seconds.items()},
    )


def fedvae_together_speedup(
    iterations: int = 300,
    repetitions: int = 3,
    users: int = 8,
    whole: int = 300,
    small: bool = False,
) -> Figure:
    """User-iterations per second of users attacked together, over those of the same one by one.

    Args:
        iterations: of both sides.
        repetitions: number of timed calls of each side.
        users: number of users.
        whole: iterations of one more attack on all of them, which is scored.
        small: whether to take a few made-up users.
    """  # fmt: skip
    chosen = _users(users, small)

    def side(at_once: int, number: int) -> Callable[[], object]:
        return lambda: _attack(number, at_once)(chosen.updates, chosen.knowledge)

    seconds = in_turns(
        {"one_by_one": side(1, iterations), "together": side(users, iterations)},
        repetitions,
        {"one_by_one": side(1, 5), "together": side(users, 5)},
    )
    found: list[Any] = []
    took = seconds_of(lambda: found.extend(_attack(whole, users)(chosen.updates, chosen.knowledge)))
    f1 = [score_items(*pair)[0].f1 for pair in zip(chosen.truths, found, strict=True)]
    samples = ratios(seconds["one_by_one"], seconds["together"])
    return Figure(
        value=median(samples),
        unit="times the user-iterations per second of one by one",
        samples=samples,
        of="pairs of calls in turn",
        setting=_setting(chosen, iterations) | {"users": users},
        details={
            **{f"{name}_seconds": median(values) for name, values in seconds.items()},
            "whole_attack_iterations": whole,
            "whole_attack_seconds_a_user": took / users,
            "whole_attack_f1": sum(f1) / users,
        },
    )


class _Clock(Observer):
    """When the rounds of a federation ended."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def round_evaluated(self, model: str, round_: int, metrics: Mapping[str, float]) -> None:
        """See :class:`Observer`."""
        self.ended.append(time.perf_counter())


class _Measured(NamedTuple):
    """Seconds of the rounds and peak in GB, both of the federation and of the plain loop."""

    seconds: list[float]
    peak: float
    plain_seconds: list[float]
    plain_peak: float
    setting: Facts


_measured: dict[tuple[int, bool, int], _Measured] = {}


def _rounds(users: int, small: bool, repetitions: int) -> _Measured:
    """Rounds of a federation, and the same in a plain loop; measured once.

    One round of each side is not timed. Half of the plain rounds come before the federation, the
    others after it.
    """
    key = (users, small, repetitions)
    if key not in _measured:
        data, settings, name = recommender(small)
        _plain_round(data, users)
        plain: list[float] = []
        before = repetitions // 2
        with _peak() as plain_peak:
            plain += [seconds_of(lambda: _plain_round(data, users)) for _ in range(before)]
        # The workers start in the first round, and the last one is evaluated.
        clock, peak = _federation(type(data), settings, users, repetitions + 2)
        seconds = [clock.ended[n + 1] - clock.ended[n] for n in range(1, repetitions + 1)]
        plain += [
            seconds_of(lambda: _plain_round(data, users)) for _ in range(repetitions - before)
        ]
        setting: Facts = {
            "model": "FedVAE with dropout 0.5", "data": name, "users": users,
            "protocol": "fedsgd", "strategy": "FedAdam", "rounds": repetitions + 2,
            "cores": os.cpu_count(), "threads_of_the_plain_loop": torch.get_num_threads(),
        }  # fmt: skip
        _measured[key] = _Measured(seconds, peak, plain, plain_peak[0], setting)
    return _measured[key]


def _federation(
    kind: type[RecommenderData], settings: dict[str, Any], users: int, rounds: int
) -> tuple[_Clock, float]:
    """When the rounds of so many users ended, and the peak in GB; a client for each user."""
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            data=Plugin(f"{kind.__module__}.{kind.__name__}", settings),
            model=Plugin("fedleak.models.fedvae.FedVAE"),
            output=str(Path(folder) / "run"),
            federation=Federation(
                clients=len(kind(**settings).train_set), clients_per_round=users,
                partition="one_each", rounds=rounds, evaluate_every=rounds, strategy="FedAdam",
                strategy_options={"eta": 0.001, "tau": 1e-8},
            ),
            victims=Victims(clients=[0], rounds=[1]),
        )  # fmt: skip
        with _peak() as peak:
            experiment.run(config, [clock])
    return clock, peak[0]


def fedvae_round_ratio(users: int = 128, small: bool = False, repetitions: int = 4) -> Figure:
    """Wall time of a federated round, over that of the same round in a plain loop in one process.

    Args:
        users: number of users of a round.
        small: whether to take a few made-up users.
        repetitions: number of timed rounds of each side.
    """
    found = _rounds(users, small, repetitions)
    samples = ratios(found.seconds, found.plain_seconds)
    return Figure(
        value=median(samples),
        unit="times as long as a plain loop",
        samples=samples,
        of="rounds",
        setting=found.setting,
        details={
            "federation_seconds": median(found.seconds),
            "plain_seconds": median(found.plain_seconds),
        },
    )


def fedvae_round_peak_ratio(users: int = 128, small: bool = False, repetitions: int = 4) -> Figure:
    """Peak memory of a federation with such rounds, over that of a plain loop.

    The peak is the highest sum of the processes' proportional set sizes, read every 0.2 s.

    Args:
        users: number of users of a round.
        small: whether to take a few made-up users.
        repetitions: as in :func:`fedvae_round_ratio`, whose run is used if it came before.
    """
    found = _rounds(users, small, repetitions)
    ratio = found.peak / found.plain_peak
    return Figure(
        value=ratio,
        unit="times the peak memory of a plain loop",
        samples=[ratio],
        of="federations",
        setting=found.setting,
        details={"federation_gb": found.peak, "plain_gb": found.plain_peak},
    )


def fedvae_users_peak_ratio(
    few: int = 1000, times: int = 10, users: int = 64, repetitions: int = 2
) -> Figure:
    """Peak memory of a federation of ten times as many users, over that of a few.

    Args:
        few: number of users, those held out included.
        times: how many times as many the others are.
        users: number of users of a round.
        repetitions: number of federations of each size, in turns.
    """
    sizes: dict[str, Any] = {"items": 2000, "held_out": few // 20}
    peaks: dict[int, list[float]] = {few: [], times * few: []}
    for _ in range(repetitions):
        for count, found in peaks.items():
            found.append(_federation(PlantedGroups, sizes | {"users": count}, users, 3)[1])
    samples = ratios(peaks[times * few], peaks[few])
    return Figure(
        value=median(samples),
        unit=f"times the peak memory for {times} times the users",
        samples=samples,
        of="pairs of federations in turn",
        setting={
            "model": "FedVAE with dropout 0.5", "data": "made-up users", "items": sizes["items"],
            "users_in_all": [few, times * few], "users": users, "rounds": 3,
        },
        details={
            "few_users_gb": median(peaks[few]), "many_users_gb": median(peaks[times * few]),
        },
    )  # fmt: skip


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
