"""Simulation of a federation on Flower's Ray engine, which is shut down at the end."""

import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path
from typing import Any, cast

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
from flwr.serverapp.strategy import Strategy
from flwr.simulation import run_simulation
from flwr.supercore import telemetry
from torch import nn

from fedleak.config import RunConfig
from fedleak.data import PrivateData
from fedleak.errors import BadInput, require
from fedleak.federation.engine.checkpoint import Outcome, client_state_folder, read_outcome
from fedleak.federation.engine.client import TruthFolder, client_app
from fedleak.federation.engine.server import (
    GRACE_SECONDS,
    FederationServer,
    Interception,
    ServerControl,
    server_app,
)
from fedleak.federation.engine.shared_weights import SharedWeightsFolder
from fedleak.federation.engine.virtual_clients import num_supernodes
from fedleak.models import LightningModule
from fedleak.runs.observer import Observer
from fedleak.runtime.memory_pages import LARGE_PAGES, use_large_pages
from fedleak.runtime.quiet import quiet
from fedleak.runtime.threads import available_cores, cap_threads

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


class FederationError(RuntimeError):
    """The server or the engine of a federation failed, as opposed to one of its clients."""


def simulate(
    config: RunConfig,
    data: PrivateData,
    *,
    model: nn.Module,
    strategy: Strategy,
    interception: Interception,
    truth: Path,
    checkpoint: Path,
    observer: Observer,
) -> Outcome:
    """Run a federation to its last round, resuming from the checkpoint if there is one.

    Args:
        config: the configuration of this federation.
        data: its data, for the server's evaluation.
        model: the LightningModule before its first round; the server changes its weights.
        strategy: the honest inner strategy; the server changes its state.
        interception: the malicious side of the server.
        truth: folder for the victims' ground truth.
        checkpoint: file that holds the state between rounds; the clients' states are stored in a
            folder beside it.
        observer: notified of events.

    Returns:
        Rounds done, failures and metrics.

    Raises:
        BadInput: if the checkpoint is damaged.
        FederationError: if the server or the engine failed.
        KeyboardInterrupt: if it was interrupted; the completed rounds can be resumed.
    """
    federation = config.federation
    outcome = read_outcome(checkpoint, federation.rounds)
    if outcome.rounds == federation.rounds:
        return outcome
    control, engine_error = ServerControl(), None
    client_states = client_state_folder(checkpoint)
    # Flower's mods expect the weights in the message.
    shared = None if config.mods else SharedWeightsFolder(client_states.path)
    if shared is not None:
        shared.clear()
    server = FederationServer(
        config, data, cast(LightningModule, model), strategy, interception, checkpoint, outcome,
        observer, control, _round_timeout(config), shared,
    )  # fmt: skip
    client_states.rewind(outcome.rounds)  # the round that was interrupted is run again
    client = client_app(config, TruthFolder(truth.resolve()), client_states)
    cap_threads(1)  # the clients use the cores while they train
    try:
        run_on_ray(config, server_app(server), client, control)
    except Exception as error:
        # When a client that hangs is killed, the engine raises after the last round.
        engine_error = error
    finally:
        cap_threads(available_cores())
    if isinstance(control.error, KeyboardInterrupt | SystemExit | BadInput):
        raise control.error
    if outcome.rounds < federation.rounds:
        reason = control.error or engine_error
        raise FederationError(f"The federation failed: {_root_cause(reason)}.") from reason
    return outcome


def _round_timeout(config: RunConfig) -> float:
    """Time limit of a round in seconds; clients beyond the number of slots wait for a free one."""
    federation = config.federation
    sampled = federation.clients_per_round or federation.size
    asked = federation.size if federation.client_evaluation else sampled
    slots = max(1, int(_cpus(config) / federation.cpus_per_client))
    return ceil(asked / slots) * federation.client_timeout + GRACE_SECONDS


def run_on_ray(
    config: RunConfig, server: ServerApp, client: ClientApp, control: ServerControl
) -> None:
    """Run a ServerApp with clients in Ray's workers, then shut Ray down.

    Flower's engine waits for its clients without a time limit and cannot be interrupted, so it runs
    in a thread of its own, and clients that no one waits for any more are killed.

    Args:
        config: number of clients and the resources of each.
        server: the server, which shares ``control``.
        client: the client.
        control: stops the server, and reports when it needs no client any more.
    """
    federation, errors = config.federation, list[Exception]()

    def engine() -> None:
        try:
            run_simulation(
                server_app=server,
                client_app=client,
                num_supernodes=num_supernodes(config),
                backend_config={
                    "client_resources": {
                        "num_cpus": federation.cpus_per_client,
                        "num_gpus": federation.gpus_per_client,
                        **RESTARTS,
                    },
                },
            )
        except Exception as error:
            errors.append(error)

    with quiet(), _ray(config):
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
            # once more when Ray has started its worker anew and repeated the task.
            for number in (signal.SIGALRM, signal.SIGKILL, signal.SIGKILL):
                if thread.is_alive():
                    _signal_clients(number)
                    thread.join(NOTICE_SECONDS)
    if errors:
        raise errors[0]


def check_resources(config: RunConfig) -> None:
    """Check that the engine's resources suffice for one client.

    Raises:
        BadInput: if a client needs more GPUs than this machine has, or there is no Ray cluster at
            the address.
    """
    federation, gpus = config.federation, torch.cuda.device_count()
    if federation.ray_address is None:
        require(
            federation.gpus_per_client <= gpus,
            f"Expected `federation.gpus_per_client` to be at most the number of GPUs here, {gpus},"
            f" got {federation.gpus_per_client:g}.",
        )
    elif found := re.fullmatch(r"(?:ray://)?(.+):(\d+)", federation.ray_address):
        # Ray itself would retry for many minutes.
        try:
            socket.create_connection((found[1], int(found[2])), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise BadInput(
                f"Expected a Ray cluster at `federation.ray_address` {federation.ray_address}, "
                f"found none ({error}): start one by `ray start --head`, or leave it out."
            ) from error


@contextmanager
def _ray(config: RunConfig) -> Iterator[None]:
    """Within the block, Ray runs: a private instance, or the cluster of the configuration."""
    federation = config.federation
    settings: dict[str, Any] = {
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.CRITICAL,
    }
    if federation.ray_address is None:
        settings |= {"address": "local", "num_cpus": _cpus(config)}
    else:
        settings["address"] = federation.ray_address
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


def _cpus(config: RunConfig) -> int:
    """CPUs of the private Ray instance: those of this process, but enough for one client."""
    return max(available_cores(), ceil(config.federation.cpus_per_client))


def _signal_clients(number: signal.Signals) -> None:
    """Signal the workers of the private Ray instance, whose replies Flower is waiting for."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "".join(process.cmdline()[:1]).startswith("ray::ClientAppActor"):
                process.send_signal(number)


def _root_cause(error: BaseException | None) -> str:
    """The message of the first exception in a chain of causes, in one line."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rstrip(".")
