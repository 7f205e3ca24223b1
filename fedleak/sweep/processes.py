"""The process of a cell: a child of this process, or of a worker of a Ray cluster.

Either leads a session of its own, so that Ctrl-C does not reach it, and keeps the cell's lock.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from fedleak.errors import first_line
from fedleak.runtime.threads import available_cores
from fedleak.sweep.folder import STOP_SECONDS, acquire_lock, owner, signal_group, stop_orphan

# The variables that the numeric libraries of numpy and torch read when they are loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip
LOST = -1000
"""The code of a process whose Ray worker has died."""
POLL_SECONDS = 0.1
LOG_LINES = 20
LOG_BYTES = 16_384


class CellProcess(Protocol):
    """A cell's process."""

    def poll(self) -> int | None:
        """Its exit code, minus the number of the signal that ended it, or None while it runs."""

    def terminate(self) -> None:
        """Ask it to end."""

    def wait(self, seconds: float) -> bool:
        """Whether it ends within some seconds."""

    def kill(self) -> None:
        """Kill it and its child processes, and wait for its end."""

    def lines(self) -> list[str]:
        """The last lines of its output that are not empty, once it has ended."""


# Starts a process from a command line, an environment, and the cell's lock file.
Launch = Callable[[Sequence[str], Mapping[str, str], Path], CellProcess]


class LocalProcess:
    """A child of this process.

    Args:
        command: its command line.
        environment: its environment.
        lock: the cell's lock file, which must not exist.
        folder: where it runs. If None, in the current folder.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        lock: Path,
        folder: Path | None = None,
    ) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 closed when the process has ended
        self._lines: list[str] | None = None
        with acquire_lock(lock) as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
                start_new_session=True,
                pass_fds=(file.fileno(),),
            )
            # If this process is killed and leaves that one behind, the next sweep stops it.
            file.write(owner(self._process.pid))

    def poll(self) -> int | None:
        """See :class:`CellProcess`."""
        code = self._process.poll()
        if code is not None and self._lines is None:
            signal_group(self._process.pid, signal.SIGKILL)  # its child processes may still run
            self._lines = _tail(self._log)
            self._log.close()
        return code

    def terminate(self) -> None:
        """See :class:`CellProcess`."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def wait(self, seconds: float) -> bool:
        """See :class:`CellProcess`."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, seconds))
        return self._process.poll() is not None

    def kill(self) -> None:
        """See :class:`CellProcess`."""
        signal_group(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def lines(self) -> list[str]:
        """See :class:`CellProcess`."""
        self.poll()
        return self._lines or []


def run_process(
    command: Sequence[str], environment: Mapping[str, str], lock: Path, folder: Path
) -> tuple[int, list[str]]:
    """Run a process to its end, as a task on Ray; an interrupt ends it.

    Args:
        command: its command line.
        environment: its environment.
        lock: the cell's lock file; a process of an earlier task that still holds it is stopped.
        folder: where it runs.

    Returns:
        Its exit code and the last lines of its output.
    """
    if lock.exists():
        stop_orphan(lock)
    process = LocalProcess(command, environment, lock, folder)
    try:
        while (code := process.poll()) is None:
            time.sleep(POLL_SECONDS)
    except BaseException:
        process.terminate()
        process.wait(STOP_SECONDS)
        process.kill()
        raise
    return code, process.lines()


class Task(Protocol):
    """A task of :mod:`fedleak.federation.engine.ray_tasks`."""

    @property
    def lost(self) -> bool:
        """Whether its worker has died."""

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether it has ended."""

    def result(self) -> Any:
        """What its function has returned."""

    def cancel(self) -> None:
        """End it."""


class RemoteProcess:
    """A child of a worker of a Ray cluster, whose nodes share the sweep's folder.

    Args:
        task: runs :func:`run_process`.
        lock: the cell's lock file.
    """

    def __init__(self, task: Task, lock: Path) -> None:
        self._task = task
        self._lock = lock
        self._lines: list[str] = []

    def poll(self) -> int | None:
        """See :class:`CellProcess`; ``LOST`` if the worker has died, whose process is stopped."""
        if not self._task.ended():
            return None
        if self._task.lost:
            if self._lock.exists():
                stop_orphan(self._lock)
            return LOST
        code: int
        try:
            code, self._lines = self._task.result()
        except Exception as error:  # of the operating system, such as a missing interpreter
            code, self._lines = 1, [f"The process could not be started: {first_line(error)}"]
        return code

    def terminate(self) -> None:
        """See :class:`CellProcess`."""
        self._task.cancel()

    def wait(self, seconds: float) -> bool:
        """See :class:`CellProcess`."""
        return self._task.ended(max(0.0, seconds))

    def kill(self) -> None:
        """See :class:`CellProcess`."""
        self._task.cancel()
        if self._lock.exists():
            stop_orphan(self._lock)

    def lines(self) -> list[str]:
        """See :class:`CellProcess`."""
        return self._lines


@contextmanager
def launch_on_ray(processes: int, ray_address: str | None) -> Iterator[Launch]:
    """Within the block, cells can be launched as tasks on Ray.

    Args:
        processes: number of cells that run at once.
        ray_address: address of a Ray cluster, whose nodes share the sweep's folder and the
            environment of this machine. If None, a private instance is started.

    Raises:
        BadInput: if there is no cluster at the address.
    """
    from fedleak.federation.engine.ray_tasks import ray_tasks

    with ray_tasks(max(processes, available_cores()), ray_address) as tasks:

        def launch(
            command: Sequence[str], environment: Mapping[str, str], lock: Path
        ) -> RemoteProcess:
            cpus = float(environment[THREAD_VARIABLES[0]])
            arguments = list(command), dict(environment), lock.resolve(), Path.cwd()
            return RemoteProcess(tasks.start(run_process, *arguments, cpus=cpus), lock)

        yield launch


def failure_reason(code: int, log: Sequence[str]) -> str:
    """The reason why a cell has failed, in one sentence.

    Args:
        code: the exit code of its process.
        log: the last lines of its output.
    """
    if code == LOST:
        return "The Ray worker in which the run was has died, as often as it was tried."
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", as happens when memory runs out" if -code == signal.SIGKILL else ""
        return f"The run was ended by {name}{hint}."
    if code == 0:
        return "The run ended without being complete."
    return log[-1].strip().removeprefix("fedleak: ") if log else f"The run ended with code {code}."


def _tail(log: IO[bytes]) -> list[str]:
    log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_BYTES))
    lines = log.read().decode("utf-8", "replace").splitlines()
    return [line.rstrip() for line in lines if line.strip()][-LOG_LINES:]
