"""What a node of Flower says of itself: the number of its client, and the client's own data.

This module imports no torch: in a deployment, every message is answered by a new process.
"""

from flwr.app import Context, Message, MetricRecord, RecordDict

from fedleak.errors import require
from fedleak.schema import shown

METRICS = "metrics"
CLIENT = "client"
PARTITION = "partition-id"
"""Flower's key of a node's own number in its configuration."""
PARTITIONS = "num-partitions"
"""Flower's key of the number of clients."""
DATA_PATH = "data-path"
"""Key of the file with the client's own data."""


def node_number(context: Context) -> int:
    """The number of the client that a node of a deployment is, whatever a message says.

    Args:
        context: the node's context.

    Raises:
        BadInput: if the node's configuration has none.
    """
    found = context.node_config.get(PARTITION)
    require(
        isinstance(found, int) and not isinstance(found, bool) and found >= 0,
        f"Expected `{PARTITION}` in a node's configuration, a whole number from 0, got "
        f"{shown(found)}: start the node with --node-config '{PARTITION}=0'.",
    )
    return int(found)  # type: ignore[arg-type]


def tell_number(message: Message, client: int) -> Message:
    """The reply to a server that asks a node for the number of its client.

    Args:
        message: the question.
        client: the number.
    """
    return Message(RecordDict({METRICS: MetricRecord({CLIENT: client})}), reply_to=message)
