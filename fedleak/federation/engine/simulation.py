"""A federation simulated on Flower's Ray engine, which is gone when it has ended."""

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

# All are read when the packages are imported or started.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

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
from fedleak.federation.engine.checkpoint import Outcome, client_memories, read_outcome
from fedleak.federation.engine.client import TruthFolder, client_app
from fedleak.federation.engine.server import GRACE_SECONDS, Interception, Line, server_app
from fedleak.federation.engine.shared_weights import SharedFolder
from fedleak.federation.engine.virtual_clients import seats
from fedleak.models import LightningModule
from fedleak.runs.observer import Observer
from fedleak.runtime.memory_pages import LARGE_PAGES, use_large_pages
from fedleak.runtime.quiet import quiet
from fedleak.runtime.threads import available_cores, cap_threads

# Flower has read its variable already if something else of it was imported before.
telemetry.FLWR_TELEMETRY_ENABLED = "0"

POLL_SECONDS = 0.1
CONNECT_SECONDS = 5.0
# How long the engine may take to wind down after the last round.
HUNG_SECONDS = 5.0
# How long the server may take to notice that it is to stop.
STOP_SECONDS = 5.0
# How long the engine may take to notice that it is to stop, or that its clients have ended.
ALARM_SECONDS = 3.0


class FederationError(RuntimeError):
    """The federation itself broke down, as opposed to one of its clients."""


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
    """Run a federation to its end; resumed from the checkpoint if there is one.

    Args:
        config: the configuration of this federation.
        data: its data, for the server's evaluation.
        model: the LightningModule before its first round; it is the server's from here on.
        strategy: the honest inner strategy, likewise.
        interception: the malicious side of the server.
        truth: folder for the victims' ground truth.
        checkpoint: file that holds the state between rounds; the clients' own is kept beside it.
        observer: told of what happens.

    Returns:
        How it went.

    Raises:
        BadInput: if the checkpoint is damaged.
        FederationError: if the server or the engine failed.
        KeyboardInterrupt: if it was interrupted; what is done stays, for resuming.
    """
    federation = config.federation
    outcome = read_outcome(checkpoint, federation.rounds)
    if outcome.rounds == federation.rounds:
        return outcome
    line, broken = Line(), None
    # As many clients train at once as there are slots; the others wait for their turn.
    all_ = federation.client_evaluation or federation.clients_per_round is None
    asked = federation.clients if all_ else federation.clients_per_round
    turns = ceil((asked or 1) / max(1, int(_cpus(config) / federation.cpus_per_client)))
    patience = turns * federation.client_timeout + GRACE_SECONDS
    memories = client_memories(checkpoint)
    # Flower's mods want the weights in the message.
    shared = None if config.mods else SharedFolder(memories.path)
    if shared is not None:
        shared.clear()
    server = server_app(
        config, data, cast(LightningModule, model), strategy, interception, checkpoint, outcome,
        observer, line, patience, shared,
    )  # fmt: skip
    memories.rewind(outcome.rounds)  # the round that was interrupted is run again
    client = client_app(config, TruthFolder(truth.resolve()), memories)
    cap_threads(1)  # the cores belong to the clients while they train
    try:
        run_on_ray(config, server, client, line)
    except Exception as error:
        # When a client that hangs is ended, the engine complains after the last round.
        broken = error
    finally:
        cap_threads(available_cores())
    if isinstance(line.error, KeyboardInterrupt | SystemExit | BadInput):
        raise line.error
    if outcome.rounds < federation.rounds:
        reason = line.error or broken
        raise FederationError(f"The federation failed: {_root(reason)}.") from reason
    return outcome


def run_on_ray(config: RunConfig, server: ServerApp, client: ClientApp, line: Line) -> None:
    """Run a ServerApp with clients in Ray's workers; Ray is gone afterwards.

    Flower's engine waits for its clients without end and cannot be interrupted, so it gets a thread
    of its own, and clients that nobody waits for any more are killed.

    Args:
        config: number of clients and what each occupies.
        server: the server, which holds the other end of ``line``.
        client: the client.
        line: tells the server to stop, and tells when it needs no client any more.
    """
    federation, errors = config.federation, list[Exception]()

    def engine() -> None:
        try:
            run_simulation(
                server_app=server,
                client_app=client,
                num_supernodes=seats(config),
                backend_config={
                    "client_resources": {
                        "num_cpus": federation.cpus_per_client,
                        "num_gpus": federation.gpus_per_client,
                    },
                },
            )
        except Exception as error:
            errors.append(error)

    with quiet(), _ray(config):
        thread = threading.Thread(target=engine, daemon=True)
        thread.start()
        patience = ALARM_SECONDS
        try:
            while thread.is_alive() and not line.ended.wait(POLL_SECONDS):
                pass
            patience = HUNG_SECONDS
        finally:
            line.stop.set()
            if line.begun.is_set():
                line.ended.wait(STOP_SECONDS)
            thread.join(patience)
            # A client's alarm clock makes it raise an exception; if it is deaf, it is killed.
            for number in (signal.SIGALRM, signal.SIGKILL):
                if thread.is_alive():
                    _signal_clients(number)
                    thread.join(ALARM_SECONDS)
    if errors:
        raise errors[0]


def check_resources(config: RunConfig) -> None:
    """Check that there is an engine to run a client on.

    Raises:
        BadInput: if a client wants a GPU that is not there, or there is no cluster at the address.
    """
    federation, there = config.federation, torch.cuda.device_count()
    if federation.ray_address is None:
        require(
            federation.gpus_per_client <= there,
            f"Expected `federation.gpus_per_client` to be at most the number of GPUs here, {there},"
            f" got {federation.gpus_per_client:g}.",
        )
    elif found := re.fullmatch(r"(?:ray://)?(.+):(\d+)", federation.ray_address):
        # Ray itself would try for many minutes.
        try:
            socket.create_connection((found[1], int(found[2])), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise BadInput(
                f"Expected a Ray cluster at `federation.ray_address` {federation.ray_address}, "
                f"found none ({error}): start one by `ray start --head`, or leave it out."
            ) from error


@contextmanager
def _ray(config: RunConfig) -> Iterator[None]:
    """Ray within the block: a private one, or the cluster of the configuration."""
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
    # A worker has to find a user's own modules where this process finds them.
    workers = {"PYTHONPATH": os.pathsep.join(sys.path)}
    # Those of a cluster at an address are not started with this process's environment.
    workers |= {name: os.environ[name] for name in LARGE_PAGES}
    settings["runtime_env"] = {"env_vars": workers}
    # The switch of Ray's own debugger: a worker that dies shows in the reply, not on the screen.
    ray._private.worker._worker_logs_enabled = False
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    try:
        with _own_signals():
            ray.init(**settings)
        yield
    finally:
        started = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        with suppress(Exception), _own_signals():
            ray.shutdown()
        # What was interrupted while it started may have left something behind.
        for process in psutil.wait_procs(started, timeout=1)[1]:
            with suppress(psutil.Error):
                process.kill()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray ends the process at SIGTERM without a word to anybody; here its handler is taken back.

    When it starts, that is a handler of its own; when it ends, the system's default, which Python
    does not know of.
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
    """CPUs of the private engine: those of the machine, but enough for one client."""
    return max(available_cores(), ceil(config.federation.cpus_per_client))


def _signal_clients(number: signal.Signals) -> None:
    """Signal the workers of the private engine, for whose replies Flower would wait for ever."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "".join(process.cmdline()[:1]).startswith("ray::ClientAppActor"):
                process.send_signal(number)


def _root(error: BaseException | None) -> str:
    """What lies at the bottom of a chain of exceptions, in one line."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rstrip(".")
