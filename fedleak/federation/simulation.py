"""A federation simulated on Flower's Ray engine, which is gone when it has ended."""

import os
import threading
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import Any

# Both are read when the packages are imported or started.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

import ray
from flwr.simulation import run_simulation

from fedleak.config import RunConfig
from fedleak.data import ImageData
from fedleak.events import Observer
from fedleak.federation.checkpoint import Outcome, read_outcome
from fedleak.federation.client import TruthFolder, client_app
from fedleak.federation.quiet import quiet
from fedleak.federation.server import Interception, server_app
from fedleak.threads import available_cores, cap_threads

# How long the engine may take to wind down after the last round.
HUNG_SECONDS = 5.0


class FederationError(RuntimeError):
    """The federation itself broke down, as opposed to one of its clients."""


def simulate(
    config: RunConfig,
    data: ImageData,
    *,
    interception: Interception,
    truth: Path,
    checkpoint: Path,
    observer: Observer,
) -> Outcome:
    """Run a federation to its end; resumed from the checkpoint if there is one.

    Args:
        config: the configuration of this federation.
        data: its data, for the server's evaluation.
        interception: the malicious side of the server.
        truth: folder for the victims' ground truth.
        checkpoint: file that holds the state between rounds.
        observer: told of what happens.

    Returns:
        How it went.

    Raises:
        FederationError: if the server or the engine failed.
        KeyboardInterrupt: if it was interrupted; what is done stays, for resuming.
    """
    federation = config.federation
    outcome = read_outcome(checkpoint)
    if outcome.rounds == federation.rounds:
        return outcome
    stop, ended, returned = threading.Event(), threading.Event(), threading.Event()
    server = server_app(config, data, interception, checkpoint, outcome, observer, stop, ended)
    engine: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    if federation.ray_address is None:
        engine["num_cpus"] = max(available_cores(), ceil(federation.cpus_per_client))
    else:
        engine["address"] = federation.ray_address
    threading.Thread(target=_release_hung_clients, args=(ended, returned), daemon=True).start()
    cap_threads(1)  # the cores belong to the clients while they train
    try:
        with quiet():
            run_simulation(
                server_app=server,
                client_app=client_app(config, TruthFolder(truth.resolve())),
                num_supernodes=federation.clients,
                backend_config={
                    "init_args": engine,
                    "client_resources": {
                        "num_cpus": federation.cpus_per_client,
                        "num_gpus": federation.gpus_per_client,
                    },
                },
            )
    except Exception as error:
        # When Ray is shut down under a client that hangs, the engine complains after the end.
        if outcome.rounds < federation.rounds:
            raise FederationError(f"The federation failed: {error}") from error
    finally:
        stop.set()
        returned.set()
        with suppress(Exception):
            ray.shutdown()
        cap_threads(available_cores())
    return outcome


def _release_hung_clients(ended: threading.Event, returned: threading.Event) -> None:
    """Shut Ray down if the engine waits for a client that the server no longer waits for."""
    ended.wait()
    if not returned.wait(HUNG_SECONDS):
        with suppress(Exception):
            ray.shutdown()
