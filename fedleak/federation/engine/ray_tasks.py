"""Functions as tasks on Ray: a private instance on this machine, or the cluster at an address."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import ray

from fedleak.errors import require
from fedleak.federation.engine.ray_engine import Resources, ray_running
from fedleak.runtime.quiet import quiet

Result = TypeVar("Result")


class WorkerLost(RuntimeError):
    """The process in which a task ran has died, as often as the task was to be tried."""


class RayTask(Generic[Result]):
    """A function that runs, or waits for its turn, in a worker of Ray.

    Args:
        reference: Ray's reference to its result.
    """

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether it has ended.

        Args:
            seconds: how long to wait for it.
        """
        return bool(ray.wait([self._reference], timeout=seconds)[0])

    def result(self) -> Result:
        """What the function has returned; waits for it.

        Raises:
            WorkerLost: if its worker has died.
            Exception: what the function has raised.
        """
        try:
            found: Result = ray.get(self._reference)
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        except ray.exceptions.RayError as error:
            raise WorkerLost(str(error).strip().splitlines()[0]) from error
        return found

    @property
    def lost(self) -> bool:
        """Whether its worker has died; waits for its end."""
        try:
            self.result()
        except WorkerLost:
            return True
        except Exception:
            return False
        return False

    def cancel(self) -> None:
        """End it: the function is interrupted by KeyboardInterrupt, or is not started."""
        ray.cancel(self._reference)


class RayTasks:
    """Starts functions on the Ray that runs, see :func:`ray_tasks`."""

    def start(
        self,
        function: Callable[..., Result],
        *arguments: Any,
        cpus: float = 1.0,
        retries: int = 0,
    ) -> RayTask[Result]:
        """Start a function in a worker, as soon as one is free.

        Args:
            function: a function of a module that workers can import, or a closure.
            arguments: its arguments; they are copied to the worker.
            cpus: CPUs that it occupies.
            retries: how often it is started again if its worker dies.

        Raises:
            BadInput: if the cluster has not as many CPUs in all.
        """
        has = ray.cluster_resources().get("CPU", 0.0)
        require(
            cpus <= has,
            f"Expected a Ray cluster with at least {cpus:g} CPUs, got one with {has:g}.",
        )
        remote = ray.remote(function).options(num_cpus=cpus, max_retries=retries)
        return RayTask(remote.remote(*arguments))

    def share(self, value: Any) -> Any:
        """What stands for a value as an argument of many tasks; it is copied to a machine once.

        Args:
            value: the value.
        """
        return ray.put(value)


@contextmanager
def ray_tasks(workers: int, ray_address: str | None = None) -> Iterator[RayTasks]:
    """Within the block, Ray runs and can be given tasks.

    Args:
        workers: number of CPUs of the private instance.
        ray_address: address of a Ray cluster. If None, a private instance is started.

    Raises:
        BadInput: if there is no cluster at the address.
    """
    resources = Resources(supernodes=0, ray_address=ray_address)
    resources.check()
    with quiet(), ray_running(ray_address, cpus=workers):
        yield RayTasks()
