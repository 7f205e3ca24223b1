"""Thousands of clients on a few of Flower's nodes."""

from collections.abc import Iterable
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid

from fedleak.config import RunConfig
from fedleak.federation import records
from fedleak.runtime.threads import available_cores

# Flower's engine hands each seat at most one message in a tenth of a second, and looks at all that
# are under way to find it: few are enough, and many take half of the server's time.
SEATS_PER_WORKER = 8
# Up to so many clients have a node each. So many seats has a cluster, whose cores are not known.
SEATS = 64
SEAT = "seat"
PARTITION = "partition-id"


class SeatedGrid(Grid):
    """A Grid that shows a node for each client, whatever the number of nodes behind it.

    Flower's engine looks at every open message for every node, over and over, which takes minutes
    with thousands of nodes. Here a node is a seat, which any client takes to answer a message; the
    message says which client that is. Simulated clients keep nothing in their nodes.

    Args:
        grid: Flower's own grid, with at least one node.
        clients: number of clients.
    """

    def __init__(self, grid: Grid, clients: int) -> None:
        self.seats = grid
        self.clients = {number + 1: number for number in range(clients)}
        self._asked: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.seats, name)

    def set_run(self, run: Any) -> None:
        """See flwr.serverapp.Grid."""
        self.seats.set_run(run)

    @property
    def run(self) -> Any:
        """See flwr.serverapp.Grid."""
        return self.seats.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """See flwr.serverapp.Grid."""
        return self.seats.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """A node for each client, from 1."""
        return list(self.clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send each message to the next seat, with the number of its client."""
        nodes, ids = list(self.seats.get_node_ids()), []
        for position, message in enumerate(messages):
            node = message.metadata.dst_node_id
            seat = ConfigRecord({records.CLIENT: self.clients[node]})
            content = RecordDict({**message.content, SEAT: seat})
            to_seat = Message(
                content,
                nodes[position % len(nodes)],
                message.metadata.message_type,
                ttl=message.metadata.ttl,
                group_id=message.metadata.group_id,
            )
            (number,) = self.seats.push_messages([to_seat])
            self._asked[number] = node
            ids.append(number)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have come, each from its client's node."""
        replies = list(self.seats.pull_messages(message_ids))
        for reply in replies:
            # Flower has no way to answer for somebody else.
            node = self._asked.pop(reply.metadata.reply_to_message_id)
            reply.metadata.__dict__["_src_node_id"] = node
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See flwr.serverapp.Grid; it is OrderedGrid that waits."""
        raise TypeError("Expected an OrderedGrid around the seats, which waits for replies.")


def seats(config: RunConfig) -> int:
    """The number of Flower's nodes for a simulation; Flower's mods may keep something in them."""
    federation = config.federation
    if config.mods or federation.clients <= SEATS:
        return federation.clients
    if federation.ray_address is not None:
        return SEATS
    workers = max(1, int(available_cores() / federation.cpus_per_client))
    return min(federation.clients, SEATS_PER_WORKER * workers)


def client_number(message: Message, context: Context) -> int:
    """Which client a message is for: the one that it names, or the node's own."""
    if message.has_content() and SEAT in message.content.config_records:
        number: Any = message.content.config_records[SEAT][records.CLIENT]
        return int(number)
    return int(context.node_config[PARTITION])
