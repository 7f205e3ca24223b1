"""The server of a run inside a Flower app: a federation on the nodes that Flower has started."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedleak.config import RunConfig
from fedleak.data import PrivateData
from fedleak.errors import require
from fedleak.federation.engine.app_client import STATES, TRUTH
from fedleak.federation.engine.checkpoint import Outcome, client_state_folder, read_outcome
from fedleak.federation.engine.grid import POLL_SECONDS
from fedleak.federation.engine.ray_engine import FederationError, root_cause
from fedleak.federation.engine.server import (
    GRACE_SECONDS,
    FederationServer,
    Interception,
    ServerControl,
    replay,
)
from fedleak.federation.engine.shared_weights import SharedWeightsFolder
from fedleak.federation.engine.virtual_clients import VirtualClientGrid
from fedleak.models import LightningModule
from fedleak.runs.observer import Observer
from fedleak.runs.spending import Spending
from fedleak.runtime.threads import available_cores, cap_threads

# The grid of Flower's simulation; its module is another one in other versions of Flower.
SIMULATION_GRID = "InMemoryGrid"
# Over a network, each look for replies is a request.
NETWORK_POLL_SECONDS = 1.0


def is_simulation(grid: Grid) -> bool:
    """Whether Flower simulates the nodes of a grid, on this machine or on its Ray cluster.

    Args:
        grid: what Flower gives to a ServerApp.
    """
    return type(grid).__name__ == SIMULATION_GRID


@dataclass(frozen=True)
class AppFederation:
    """Runs federations in a ServerApp; called with the arguments of ``simulate``.

    In a simulation there is any number of clients on the SuperNodes that Flower has started; their
    truth and the weights that they are sent are files. Otherwise each client is a node, and the
    server has nothing of it but its replies.

    Args:
        grid: what Flower gives to the ServerApp.
    """

    grid: Grid

    def __call__(
        self,
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
        """Run a federation on the grid; see :func:`fedleak.federation.engine.simulation.simulate`.

        Only a simulation writes to the folder ``truth``.

        Raises:
            BadInput: if the checkpoint is damaged, or the configuration of a simulation has mods.
            FederationError: if the server failed, or nodes are missing or share a number.
        """
        federation = config.federation
        outcome = read_outcome(checkpoint, federation.rounds)
        if outcome.rounds == federation.rounds or outcome.ended:
            if spending is not None:
                replay(spending, outcome)
            return outcome
        grid, poll_seconds, in_turn = self.grid, NETWORK_POLL_SECONDS, 1
        shared: SharedWeightsFolder | None = None
        if is_simulation(grid):
            _check_mods(config)
            states = client_state_folder(checkpoint)
            states.rewind(outcome.rounds)  # the round that was interrupted is run again
            shared, poll_seconds = SharedWeightsFolder(states.path), POLL_SECONDS
            shared.clear()
            folders = {TRUTH: str(truth.resolve()), STATES: str(states.path)}
            grid = VirtualClientGrid(grid, federation.size, folders)
            in_turn = federation.size  # Flower may run a single client at a time
        timeout = in_turn * federation.client_timeout + GRACE_SECONDS
        server = FederationServer(
            config, data, cast(LightningModule, model), strategy, interception, checkpoint,
            outcome, observer, ServerControl(), timeout, shared, poll_seconds, node_each=True,
            spending=spending,
        )  # fmt: skip
        cap_threads(1)  # the clients may use the cores while they train
        try:
            server.run(grid)
        except RuntimeError as error:
            raise FederationError(f"The federation failed: {root_cause(error)}.") from error
        finally:
            cap_threads(available_cores())
        return outcome


def _check_mods(config: RunConfig) -> None:
    require(
        not config.mods,
        "Expected no `federation.mods` in a simulated Flower app, where clients share nodes in "
        "which mods may keep state, got some: use `fedleak run`, or a defence.",
    )
