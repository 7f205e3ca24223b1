"""Flower's Grid with nodes and replies in a fixed order, callbacks, and a way to stop it."""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedleak.federation import records
from fedleak.federation.engine.client_errors import last_message
from fedleak.federation.engine.forwarding_grid import ForwardingGrid
from fedleak.federation.engine.shared_weights import SharedWeightsFolder
from fedleak.federation.engine.virtual_clients import VirtualClientGrid
from fedleak.federation.nodes import PARTITION
from fedleak.federation.strategy import Stopped

POLL_SECONDS = 0.1
HANDSHAKE_SECONDS = 300.0


class OrderedGrid(ForwardingGrid):
    """A Grid whose nodes and replies are in the order of the clients' numbers.

    Flower returns nodes and replies in an arbitrary order, and both client sampling and float sums
    depend on it; in a fixed order, a run with the same seed gives the same results.

    Args:
        grid: Flower's own grid.
        clients: number of clients to wait for.
        stop: set from outside to make the server stop waiting.
        on_reply: called with the client's number and its reply, as the replies arrive.
        shared: where to store the weights that are sent to all clients. If None, every message
            carries them.
        poll_seconds: time between two looks for replies or nodes.

    Raises:
        Stopped: if the run was told to stop.
        RuntimeError: if a client does not connect or does not answer with a number of its own.
    """

    def __init__(
        self,
        grid: Grid,
        clients: int,
        *,
        stop: threading.Event,
        on_reply: Callable[[int, Message], None],
        shared: SharedWeightsFolder | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        super().__init__(grid)
        self._stop = stop
        self._on_reply = on_reply
        self._shared = shared
        self._poll_seconds = poll_seconds
        self.clients: dict[int, int] = {}
        if isinstance(grid, VirtualClientGrid):
            self._wait_for(1, grid.supernodes)
            self.clients = grid.clients
        else:
            self.clients = self._identify(clients)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes in the order of their clients' numbers."""
        present = set(self._grid.get_node_ids())
        return [node for node in self.clients if node in present]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for the replies, which are returned in the order of the clients.

        Args:
            messages: one for each client.
            timeout: seconds to wait for replies. If None, there is no limit.

        Raises:
            Stopped: if the run was told to stop.
        """
        sending = nullcontext(messages) if self._shared is None else self._shared.sending(messages)
        with sending as ready:
            replies = self._exchange(ready, timeout)
        return sorted(replies, key=lambda reply: self.clients[reply.metadata.src_node_id])

    def _exchange(self, messages: Iterable[Message], timeout: float | None) -> list[Message]:
        questions = list(messages)
        ids = list(self._grid.push_messages(questions))
        # None, or no id at all, stands for a message that Flower did not take.
        open_ids = {number for number in ids if number}
        asked = [question.metadata.dst_node_id for question in questions]
        nodes = dict(zip(ids, asked, strict=True)) if len(ids) == len(asked) else {}
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while open_ids and (deadline is None or time.monotonic() < deadline):
            for reply in self._grid.pull_messages(open_ids):
                open_ids.discard(reply.metadata.reply_to_message_id)
                # For a node that is gone, Flower answers in its own name.
                own = reply.metadata.src_node_id
                node = nodes.get(reply.metadata.reply_to_message_id, own)
                reply.metadata.__dict__["_src_node_id"] = node
                replies.append(reply)
                self._on_reply(self.clients.get(node, -1), reply)
            if open_ids and self._stop.wait(self._poll_seconds):
                raise Stopped
        if self._stop.is_set():
            raise Stopped  # the clients may have been killed, which does not count as their failure
        return replies

    def _wait_for(self, clients: int, grid: Grid) -> list[int]:
        """Wait until a grid has at least as many nodes as clients, and return the nodes."""
        deadline = time.monotonic() + HANDSHAKE_SECONDS
        while len(nodes := list(grid.get_node_ids())) < clients:
            if self._stop.wait(self._poll_seconds):
                raise Stopped
            if time.monotonic() > deadline:
                raise RuntimeError(f"only {len(nodes)} of {clients} clients connected")
        return nodes

    def _identify(self, clients: int) -> dict[int, int]:
        """Query every node for its client's number: node id -> number, ordered by number."""
        nodes = self._wait_for(clients, self._grid)
        questions = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
        numbers: dict[int, int] = {}
        reason = "they do not answer"
        for reply in self._exchange(questions, HANDSHAKE_SECONDS):
            if reply.has_error():
                reason = last_message(reply.error.reason or reason)
                continue
            found = reply.content.metric_records[records.METRICS][records.CLIENT]
            number = int(found)  # type: ignore[arg-type]
            if number in numbers.values() or number >= clients:
                raise RuntimeError(
                    f"expected nodes with `{PARTITION}` from 0 to {clients - 1}, each of them "
                    f"once, got {number}{' twice' * (number in numbers.values())}"
                )
            numbers[reply.metadata.src_node_id] = number
        if len(numbers) < clients:
            raise RuntimeError(f"only {len(numbers)} of {clients} clients are ready: {reason}")
        return dict(sorted(numbers.items(), key=lambda item: item[1]))
