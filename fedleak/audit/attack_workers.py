"""Attacks on several updates, and trainings of shadow clients, at the same time: tasks on Ray."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fedleak.audit.ladder import Found, Queue, Report, Victim, best_result
from fedleak.audit.shadow_clients import Shadow, train_shadows
from fedleak.errors import require
from fedleak.federation.engine.ray_tasks import RayTask, RayTasks, WorkerLost, ray_tasks

# How often a task is started again if its worker dies.
RETRIES = 3
# Shadow clients of a task.
CHUNK = 4
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class AttackWorkers:
    """Workers of Ray that attack updates and train shadow clients.

    What they give is what :func:`fedleak.audit.ladder.one_by_one` and
    :func:`fedleak.audit.shadow_clients.train_shadows` give, but for what depends on time.

    Args:
        tasks: the Ray that runs.
        number: number of workers.
    """

    tasks: RayTasks
    number: int

    def attack(
        self, victims: Sequence[Victim], end: float, latest: float, seed: int, report: Report
    ) -> Iterator[tuple[Victim, Found]]:
        """Attack updates, several at once, in the order in which the attacks end.

        An update's share of the time is such that all of them have one; if its worker dies, the
        attack is started again in another.

        Args:
            victims: the victims.
            end: see :func:`fedleak.audit.ladder.one_by_one`.
            latest: see there.
            seed: see there.
            report: see there.

        Yields:
            Victims and what :func:`fedleak.audit.ladder.best_result` has found.
        """
        waiting, running = Queue(victims, self.number), dict[RayTask[Found], Victim]()
        try:
            while waiting or running:
                while waiting and len(running) < self.number and time.monotonic() < end:
                    left = end - time.monotonic()
                    most = max(left, latest - time.monotonic())
                    victim, share = waiting.next(left)
                    report(f"attacks on {victim.key}")
                    task = self.tasks.start(_attack, victim, share, seed, most, retries=RETRIES)
                    running[task] = victim
                if not running:
                    return
                for task in [task for task in running if task.ended()]:
                    try:
                        found = task.result()
                    except WorkerLost:
                        found = Found(None, "", "its worker died each time that it was attacked")
                    victim = running.pop(task)
                    if not waiting.again(victim, found, end - time.monotonic()):
                        yield victim, found
                time.sleep(POLL_SECONDS)
        finally:
            for task in running:
                task.cancel()

    def train_shadows(self, *arguments: Any, number: int, **settings: Any) -> Iterator[Shadow]:
        """Train shadow clients, in their order.

        Args:
            arguments: see :func:`fedleak.audit.shadow_clients.train_shadows`.
            number: see there.
            settings: see there.

        Yields:
            The shadow clients.

        Raises:
            BadInput: see there.
            WorkerLost: if a worker dies again and again.
        """
        shared = self.tasks.share((arguments, settings))
        tasks = [
            self.tasks.start(_train, shared, first, min(CHUNK, number - first), retries=RETRIES)
            for first in range(0, number, CHUNK)
        ]
        try:
            for task in tasks:
                while not task.ended(POLL_SECONDS):
                    pass
                yield from task.result()
        finally:
            for task in tasks:
                task.cancel()


@contextmanager
def attack_workers(number: int, ray_address: str | None) -> Iterator[AttackWorkers | None]:
    """Within the block, workers are there; None where there is to be one alone, this process.

    Args:
        number: number of workers, at least 1.
        ray_address: address of a Ray cluster, whose workers import the app from the same folder. If
            None, a private instance of Ray is started.

    Raises:
        BadInput: if the number is below 1, or there is no cluster at the address.
    """
    require(number >= 1, f"Expected `processes` to be at least 1, got {number}.")
    if number == 1:
        yield None
        return
    with ray_tasks(number, ray_address) as tasks:
        yield AttackWorkers(tasks, number)


def _attack(victim: Victim, seconds: float, seed: int, limit: float) -> Found:
    return best_result(victim, seconds, seed, lambda text: None, limit=limit)


def _train(shared: tuple[tuple[Any, ...], dict[str, Any]], first: int, number: int) -> list[Shadow]:
    arguments, settings = shared
    return list(train_shadows(*arguments, **settings, first=first, number=number))
