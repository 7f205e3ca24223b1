"""Flower's engine on Ray: a private instance or a cluster, and what is left when it ends."""

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import ceil
from typing import Any

# The packages read these when they are imported or started.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
# An engine's thread that outlives its Ray would otherwise start another one.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"

import psutil
import ray
import ray._private.worker
import torch
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from flwr.supercore import telemetry

from fedleak.errors import BadInput, require
from fedleak.federation.engine.server import ServerControl
from fedleak.runtime.memory_pages import LARGE_PAGES, use_large_pages
from fedleak.runtime.quiet import quiet
from fedleak.runtime.threads import available_cores

# If another part of Flower was imported before, it has read its variable already.
telemetry.FLWR_TELEMETRY_ENABLED = "0"

# Ray's options of a worker. Flower goes on to use a worker that has died, so Ray starts it anew, as
# often as needed; what it was to do is tried once more, since a message that comes while the worker
# starts would be lost.
RESTARTS = {"max_restarts": -1, "max_task_retries": 1}
POLL_SECONDS = 0.1
CONNECT_SECONDS = 5.0
# Time limits in seconds: for the engine to shut down after the last round,
SHUTDOWN_SECONDS = 5.0
# for the server to notice that it was told to stop,
STOP_SECONDS = 5.0
# and for the engine to notice that it was told to stop, or that its clients have ended.
NOTICE_SECONDS = 3.0
# for clients to be killed, whose workers Ray starts anew;
KILL_SECONDS = 60.0


class FederationError(RuntimeError):
    """The server or the engine of a federation failed, as opposed to one of its clients."""


@dataclass(frozen=True)
class Resources:
    """What a simulation runs on.

    Args:
        supernodes: number of Flower's SuperNodes.
        cpus_per_client: CPUs that one client occupies; a share lets several use one CPU.
        gpus_per_client: GPUs that one client occupies.
        ray_address: address of a Ray cluster. If None, a private instance of Ray is started.
    """

    supernodes: int
    cpus_per_client: float = 1.0
    gpus_per_client: float = 0.0
    ray_address: str | None = None

    @property
    def cpus(self) -> int:
        """CPUs of the private Ray instance: those of this process, but enough for one client."""
        return max(available_cores(), ceil(self.cpus_per_client))

    def check(self, prefix: str = "") -> None:
        """Check that they suffice for one client.

        Args:
            prefix: what stands before the settings' names in messages.

        Raises:
            BadInput: if a client needs more GPUs than this machine has, or there is no Ray cluster
                at the address.
        """
        gpus = torch.cuda.device_count()
        if self.ray_address is None:
            require(
                self.gpus_per_client <= gpus,
                f"Expected `{prefix}gpus_per_client` to be at most the number of GPUs here, {gpus},"
                f" got {self.gpus_per_client:g}.",
            )
        elif found := re.fullmatch(r"(?:ray://)?(.+):(\d+)", self.ray_address):
            # Ray itself would retry for many minutes.
            try:
                socket.create_connection((found[1], int(found[2])), CONNECT_SECONDS).close()
            except (OSError, OverflowError) as error:
                raise BadInput(
                    f"Expected a Ray cluster at `{prefix}ray_address` {self.ray_address}, "
                    f"found none ({error}): start one by `ray start --head`, or leave it out."
                ) from error


def run_engine(
    resources: Resources, server: ServerApp, client: ClientApp, control: ServerControl
) -> None:
    """Run a ServerApp with clients in Ray's workers, then shut Ray down.

    Flower's engine waits for its clients without a time limit and cannot be interrupted, so it runs
    in a thread of its own, and clients that no one waits for any more are killed.

    Args:
        resources: number of SuperNodes and the resources of each client.
        server: the server, which shares ``control``.
        client: the client.
        control: stops the server, and reports when it needs no client any more.
    """
    errors: list[Exception] = []

    def engine() -> None:
        try:
            run_simulation(
                server_app=server,
                client_app=client,
                num_supernodes=resources.supernodes,
                backend_config={
                    "client_resources": {
                        "num_cpus": resources.cpus_per_client,
                        "num_gpus": resources.gpus_per_client,
                        **RESTARTS,
                    },
                },
            )
        except Exception as error:
            errors.append(error)

    with quiet(), ray_running(resources.ray_address, resources.cpus):
        thread = threading.Thread(target=engine, daemon=True)
        thread.start()
        timeout = NOTICE_SECONDS
        try:
            while thread.is_alive() and not control.ended.wait(POLL_SECONDS):
                pass
            timeout = SHUTDOWN_SECONDS
        finally:
            control.stop.set()
            if control.started.is_set():
                control.ended.wait(STOP_SECONDS)
            thread.join(timeout)
            # SIGALRM makes a client raise an exception; a client that ignores it is killed, and
            # again when Ray has started its worker anew and repeated the task.
            number, end = signal.SIGALRM, time.monotonic() + KILL_SECONDS
            while thread.is_alive() and time.monotonic() < end:
                _signal_clients(number)
                thread.join(NOTICE_SECONDS)
                number = signal.SIGKILL
    if errors:
        raise errors[0]


@contextmanager
def ray_running(address: str | None, cpus: int) -> Iterator[None]:
    """Within the block, Ray runs: a private instance, or the cluster at the address.

    Args:
        address: the cluster's address. If None, a private instance is started.
        cpus: CPUs of a private instance.
    """
    settings: dict[str, Any] = {
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.CRITICAL,
    }
    if address is None:
        settings |= {"address": "local", "num_cpus": cpus}
    else:
        settings["address"] = address
    use_large_pages()
    # Workers import a user's own modules from the same folders as this process.
    workers = {"PYTHONPATH": os.pathsep.join(sys.path)}
    # The workers of a cluster at an address do not inherit this process's environment.
    workers |= {name: os.environ[name] for name in LARGE_PAGES}
    settings["runtime_env"] = {"env_vars": workers}
    # Ray's debugger sets this too: a worker's failure is reported in its reply, not printed.
    ray._private.worker._worker_logs_enabled = False
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    try:
        with _restore_sigterm_handler():
            ray.init(**settings)
        yield
    finally:
        started = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        with suppress(Exception), _restore_sigterm_handler():
            ray.shutdown()
        # Ray may have left processes behind if it was interrupted while it started.
        for process in psutil.wait_procs(started, timeout=1)[1]:
            with suppress(psutil.Error):
                process.kill()


@contextmanager
def _restore_sigterm_handler() -> Iterator[None]:
    """Restore the handler of SIGTERM, which Ray replaces when it starts and when it shuts down.

    On start-up Ray installs a handler that ends the process silently; on shutdown it installs the
    system's default behind Python's back.

    Raises:
        KeyboardInterrupt: if Ray's handler ends the process within the block.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _signal_clients(number: signal.Signals) -> None:
    """Signal the workers of the private Ray instance, whose replies Flower is waiting for."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "".join(process.cmdline()[:1]).startswith("ray::ClientAppActor"):
                process.send_signal(number)


def root_cause(error: BaseException | None) -> str:
    """The message of the first exception in a chain of causes, in one line."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rstrip(".")
