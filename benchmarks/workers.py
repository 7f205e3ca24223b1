"""How much faster two of Ray's workers attack than one."""

import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.measure import Figure, median, ratios, seconds_of
from benchmarks.victims import make_victims
from fedleak.attacks import IGA
from fedleak.federation.engine.ray_tasks import RayTasks, ray_tasks
from fedleak.models import LeNet
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate


def two_worker_speedup(victims: int = 8, iterations: int = 1000, repetitions: int = 3) -> Figure:
    """Wall time of attacks as tasks on Ray in one worker, over that in two.

    Args:
        victims: number of clients; the attack on each is a task.
        iterations: iterations of each attack.
        repetitions: number of timed calls of each side; one more of each is not timed.
    """
    updates, knowledge, _ = make_victims(LeNet, victims)
    pairs = list(zip(updates, knowledge, strict=True))
    # A task that occupies both CPUs of the instance runs alone.
    sides = {"one_worker": (1, 2.0), "two_workers": (2, 1.0)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with ray_tasks(workers=2) as tasks:

        def attack(cpus: float, number: int) -> None:
            started = [tasks.start(_attack, *pair, number, cpus=cpus) for pair in pairs]
            for task in started:
                task.result()

        for repetition in range(repetitions + 1):
            for name, (workers, cpus) in sides.items():
                # Ray ends a worker that is idle, and a new one takes seconds to import torch.
                _start_workers(tasks, workers, cpus)
                took = seconds_of(partial(attack, cpus, iterations if repetition else 5))
                seconds[name] += [took] if repetition else []
    samples = ratios(seconds["one_worker"], seconds["two_workers"])
    return Figure(
        value=median(samples),
        unit="times as fast as one worker",
        samples=samples,
        of="pairs of calls in turn",
        setting={
            "attack": "iga", "model": "LeNet (sigmoid), untrained", "data": "photos 3x32x32",
            "victims": victims, "batch_size": 1, "labels": "known", "iterations": iterations,
            "threads_of_a_worker": 1,
        },
        details={f"{name}_seconds": median(values) for name, values in seconds.items()},
    )  # fmt: skip


def _start_workers(tasks: RayTasks, number: int, cpus: float) -> None:
    """Have so many workers ready."""
    with tempfile.TemporaryDirectory() as folder:
        met = [tasks.start(_meet, Path(folder), n, number, cpus=cpus) for n in range(number)]
        for task in met:
            task.result()


def _meet(folder: Path, own: int, number: int) -> None:
    """Wait until as many tasks run at the same time, so that each has a worker of its own."""
    (folder / str(own)).touch()
    while len(list(folder.iterdir())) < number:
        time.sleep(0.05)


def _attack(update: InterceptedUpdate, knowledge: Knowledge, iterations: int) -> float:
    # Ray gives a task as many threads as CPUs.
    torch.set_num_threads(1)
    return IGA(iterations=iterations, at_once=1)([update], [knowledge])[0].explained
