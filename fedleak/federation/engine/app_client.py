"""The client of a run inside a Flower app, simulated or a node of a deployment."""

import secrets
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedleak.errors import require
from fedleak.federation.engine.client import TruthFolder, client_app
from fedleak.federation.engine.client_state import ClientStateFolder
from fedleak.federation.engine.virtual_clients import VIRTUAL_CLIENT
from fedleak.federation.nodes import DATA_PATH
from fedleak.federation.run_config import on_node, read_run_config

TRUTH, STATES = "truth", "states"
"""Keys under which a message of a simulation has the folders of truth and clients' states."""
MAX_SEED = 2**62


def client_in_app(message: Message, context: Context) -> ClientApp:
    """The ClientApp that answers a message to the client of a Flower app.

    In a simulation the client's number and the run's folders are in the message. A node of a
    deployment takes neither from a message, stores no truth, and draws its random numbers from a
    seed that the server does not know.

    Args:
        message: the message.
        context: the node's context. Its run config is that of the app, see
            :func:`fedleak.federation.run_config.read_run_config`; the configuration of a node has
            ``partition-id``, the client's number, and optionally ``num-partitions`` and
            ``data-path``, the file with all the client's data.

    Raises:
        BadInput: if the run config or the node's configuration is wrong, or a message names folders
            to a node that is not simulated.
    """
    config = read_run_config(context.run_config)
    facts = message.content.config_records.get(VIRTUAL_CLIENT)
    if facts is None:
        return client_app(
            on_node(config, context.node_config),
            deployed=True,
            own_data=DATA_PATH in context.node_config,
            seed=secrets.randbelow(MAX_SEED),
        )
    require(
        _runs_on_ray(),
        "Expected weights and settings in a message to a node of a deployment, got a message of a "
        "simulation, which names folders.",
    )
    truth, states = Path(str(facts[TRUTH])), Path(str(facts[STATES]))
    return client_app(config, TruthFolder(truth), ClientStateFolder(states))


def _runs_on_ray() -> bool:
    """Whether this process is a worker of Ray, as that of every simulated client is."""
    import ray

    return bool(ray.is_initialized())
