"""Virtual clients: many simulated clients on a few of Flower's SuperNodes."""

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid

from fedleak.config import RunConfig
from fedleak.federation import records
from fedleak.federation.nodes import PARTITION
from fedleak.runtime.threads import available_cores

# Flower's engine hands each SuperNode at most one message in a tenth of a second, and scans all
# messages in flight to find it. A few SuperNodes keep a worker busy; with many, the scans take half
# of the server's time.
SUPERNODES_PER_WORKER = 8
# Up to this number of clients, each client has a SuperNode of its own. It is also the number of
# SuperNodes on a Ray cluster, whose number of cores is not known here.
MAX_SUPERNODES = 64
# The record that names the virtual client in a message.
VIRTUAL_CLIENT = "virtual-client"


class VirtualClientGrid(Grid):
    """A Grid with one node for each client, on top of a grid with any number of SuperNodes.

    Flower's engine scans all open messages for each node again and again, which takes minutes with
    thousands of nodes. Here each message is sent to one of a few SuperNodes and names the client
    that the SuperNode acts as. This works since simulated clients keep no state in their nodes.

    Args:
        grid: Flower's own grid, with at least one SuperNode.
        clients: number of clients.
        facts: what every message says beside the client's number, by key.
    """

    def __init__(self, grid: Grid, clients: int, facts: Mapping[str, str] | None = None) -> None:
        self._facts = dict(facts or {})
        self.supernodes = grid
        self.clients = {number + 1: number for number in range(clients)}
        self._nodes_by_message: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.supernodes, name)

    def set_run(self, run: Any) -> None:
        """See flwr.serverapp.Grid."""
        self.supernodes.set_run(run)

    @property
    def run(self) -> Any:
        """See flwr.serverapp.Grid."""
        return self.supernodes.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """See flwr.serverapp.Grid."""
        return self.supernodes.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """The ids of the clients' nodes, counted from 1."""
        return list(self.clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send the messages to the SuperNodes in turn, each with the number of its client."""
        supernodes, ids = list(self.supernodes.get_node_ids()), []
        for position, message in enumerate(messages):
            node = message.metadata.dst_node_id
            client = ConfigRecord({records.CLIENT: self.clients[node], **self._facts})
            content = RecordDict({**message.content, VIRTUAL_CLIENT: client})
            forwarded = Message(
                content,
                supernodes[position % len(supernodes)],
                message.metadata.message_type,
                ttl=message.metadata.ttl,
                group_id=message.metadata.group_id,
            )
            (message_id,) = self.supernodes.push_messages([forwarded])
            self._nodes_by_message[message_id] = node
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies received so far, each with its client's node as the source."""
        replies = list(self.supernodes.pull_messages(message_ids))
        for reply in replies:
            # Flower's API cannot set the source of a reply.
            node = self._nodes_by_message.pop(reply.metadata.reply_to_message_id)
            reply.metadata.__dict__["_src_node_id"] = node
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Not available: OrderedGrid, which wraps this grid, waits for the replies.

        Raises:
            TypeError: always.
        """
        raise TypeError("Expected an OrderedGrid around VirtualClientGrid to wait for replies.")


def num_supernodes(config: RunConfig) -> int:
    """The number of SuperNodes of a simulation.

    One for each client where the configuration has Flower mods, which may keep state in a node.
    """
    federation = config.federation
    if config.mods or federation.size <= MAX_SUPERNODES:
        return federation.size
    if federation.ray_address is not None:
        return MAX_SUPERNODES
    workers = max(1, int(available_cores() / federation.cpus_per_client))
    return min(federation.size, SUPERNODES_PER_WORKER * workers)


def client_number(message: Message, context: Context) -> int:
    """The number of the client that a message is for: the one it names, or the node's own."""
    if message.has_content() and VIRTUAL_CLIENT in message.content.config_records:
        number: Any = message.content.config_records[VIRTUAL_CLIENT][records.CLIENT]
        return int(number)
    return int(context.node_config[PARTITION])
