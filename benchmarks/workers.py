"""How much faster two of Ray's workers attack than one."""

from collections.abc import Callable

import torch

from benchmarks.measure import Figure, in_turns, median, ratios
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
        repetitions: number of timed calls of each side.
    """
    updates, knowledge, _ = make_victims(LeNet, victims)
    pairs = list(zip(updates, knowledge, strict=True))

    def side(tasks: RayTasks, cpus: float, number: int) -> Callable[[], object]:
        def attack() -> None:
            started = [tasks.start(_attack, *pair, number, cpus=cpus) for pair in pairs]
            for task in started:
                task.result()

        return attack

    # A task that occupies both CPUs of the instance runs alone.
    with ray_tasks(workers=2) as tasks:
        seconds = in_turns(
            {
                "one_worker": side(tasks, 2.0, iterations),
                "two_workers": side(tasks, 1.0, iterations),
            },
            repetitions,
            {"one_worker": side(tasks, 2.0, 5), "two_workers": side(tasks, 1.0, 5)},
        )
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


def _attack(update: InterceptedUpdate, knowledge: Knowledge, iterations: int) -> float:
    # Ray gives a task as many threads as CPUs.
    torch.set_num_threads(1)
    return IGA(iterations=iterations, at_once=1)([update], [knowledge])[0].explained
