"""Simulation of a federation on Flower's Ray engine, which is shut down at the end."""

from math import ceil
from pathlib import Path
from typing import cast

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedleak.config import RunConfig
from fedleak.data import PrivateData
from fedleak.errors import BadInput
from fedleak.federation.engine.checkpoint import Outcome, client_state_folder, read_outcome
from fedleak.federation.engine.client import TruthFolder, client_app
from fedleak.federation.engine.ray_engine import FederationError, Resources, root_cause, run_engine
from fedleak.federation.engine.server import (
    GRACE_SECONDS,
    FederationServer,
    Interception,
    ServerControl,
    replay,
    server_app,
)
from fedleak.federation.engine.shared_weights import SharedWeightsFolder
from fedleak.federation.engine.virtual_clients import num_supernodes
from fedleak.models import LightningModule
from fedleak.runs.observer import Observer
from fedleak.runs.spending import Spending
from fedleak.runtime.threads import available_cores, cap_threads


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
    spending: Spending | None = None,
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
        spending: counts what is spent of the clients' privacy; if its budget does not hold a next
            round, the federation ends before. If None, nothing is counted.

    Returns:
        Rounds done, failures and metrics.

    Raises:
        BadInput: if the checkpoint is damaged.
        FederationError: if the server or the engine failed.
        KeyboardInterrupt: if it was interrupted; the completed rounds can be resumed.
    """
    federation = config.federation
    outcome = read_outcome(checkpoint, federation.rounds)
    if outcome.rounds == federation.rounds or outcome.ended:
        if spending is not None:
            replay(spending, outcome)
        return outcome
    control, engine_error = ServerControl(), None
    client_states = client_state_folder(checkpoint)
    # Flower's mods expect the weights in the message.
    shared = None if config.mods else SharedWeightsFolder(client_states.path)
    if shared is not None:
        shared.clear()
    server = FederationServer(
        config, data, cast(LightningModule, model), strategy, interception, checkpoint, outcome,
        observer, control, _round_timeout(config), shared, spending=spending,
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
    if outcome.rounds < federation.rounds and not outcome.ended:
        reason = control.error or engine_error
        raise FederationError(f"The federation failed: {root_cause(reason)}.") from reason
    return outcome


def _round_timeout(config: RunConfig) -> float:
    """Time limit of a round in seconds; clients beyond the number of slots wait for a free one."""
    federation = config.federation
    sampled = federation.clients_per_round or federation.size
    asked = federation.size if federation.client_evaluation else sampled
    slots = max(1, int(_resources(config).cpus / federation.cpus_per_client))
    return ceil(asked / slots) * federation.client_timeout + GRACE_SECONDS


def run_on_ray(
    config: RunConfig, server: ServerApp, client: ClientApp, control: ServerControl
) -> None:
    """Run a ServerApp with the clients of a configuration; see :func:`ray_engine.run_engine`."""
    run_engine(_resources(config), server, client, control)


def check_resources(config: RunConfig) -> None:
    """Check that the engine's resources suffice for one client.

    Raises:
        BadInput: if a client needs more GPUs than this machine has, or there is no Ray cluster at
            the address.
    """
    _resources(config).check("federation.")


def _resources(config: RunConfig) -> Resources:
    federation = config.federation
    return Resources(
        num_supernodes(config),
        federation.cpus_per_client,
        federation.gpus_per_client,
        federation.ray_address,
    )
