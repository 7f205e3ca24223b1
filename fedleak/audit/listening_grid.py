"""A Grid that lets a listener hear every message between a ServerApp and its clients."""

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as futures_wait
from contextlib import contextmanager
from typing import Any, Protocol

from flwr.app import Message
from flwr.server.client_manager import SimpleClientManager
from flwr.serverapp import Grid
from flwr.supercore.run import RunNotRunningException

from fedleak.federation.engine.forwarding_grid import ForwardingGrid
from fedleak.federation.engine.ray_engine import FederationError
from fedleak.federation.strategy import Stopped

logger = logging.getLogger(__name__)

# Seconds between two looks at whether the run was told to stop.
POLL_SECONDS = 0.1
# Seconds for all nodes to connect before the app begins.
CONNECT_SECONDS = 60.0
# Seconds for which an app may ask for nodes, with all of them there, and send nothing; and the most
# that the time between two questions counts, as the app may do something else in it.
WAITING_SECONDS, LONGEST_GAP = 30.0, 5.0
ASK_SECONDS = 1.0


class Listener(Protocol):
    """What hears the messages; it must not change them."""

    def asked(self, question: Message) -> None:
        """Called with each message of the server when it is handed over to be sent."""

    def replied(self, question: Message, reply: Message) -> None:
        """Called with each reply before the ServerApp sees it.

        Args:
            question: the message that it answers, the same object as in :meth:`asked`.
            reply: the reply, which may be an error.
        """


class ListeningGrid(ForwardingGrid):
    """A Grid that passes everything on to another one and tells a listener what passes.

    It works below the strategy, so it needs none: a loop of one's own, and the strategies from
    before Flower's Message API, use the same Grid. Messages are the same objects in the same order.
    An error of the listener is logged and counted, and the training goes on. The listener is called
    by one thread at a time.

    Args:
        grid: Flower's own grid.
        listener: hears the messages.
        stop: set from outside to end the run at the next call of the grid, or while it waits for
            replies. If None, nothing ends it.
        clients: number of nodes that there will be. If None, an app that waits for more nodes than
            there are waits for ever.

    Attributes:
        failures: what the listener has raised.

    Raises:
        Stopped: if the run was told to stop.
        FederationError: if the app waits for more nodes than there are.
    """

    def __init__(
        self,
        grid: Grid,
        listener: Listener,
        *,
        stop: threading.Event | None = None,
        clients: int | None = None,
    ) -> None:
        super().__init__(grid)
        self._listener = listener
        self._stop = stop
        self._lock = threading.RLock()
        self._open: dict[str, Message] = {}
        self.failures: list[Exception] = []
        self._clients = clients
        self._thread = threading.get_ident()  # that of the ServerApp
        self._last_asked: float | None = None
        self._waited = 0.0

    def get_node_ids(self) -> Iterable[int]:
        """See flwr.serverapp.Grid."""
        own = threading.get_ident() == self._thread
        if not own and self._stop is not None and self._stop.is_set():
            raise RunNotRunningException  # ends the thread of Flower's older API without a trace
        self._check_stop()  # servers wait for nodes in a loop
        self._check_waiting()
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """See flwr.serverapp.Grid."""
        self._check_stop()
        self._check_waiting()
        return self._grid.get_nodes()

    def wait_for_nodes(self) -> int:
        """Wait until all nodes are connected, for a minute at most; no message is sent.

        Returns:
            The number of nodes that are.

        Raises:
            Stopped: if the run was told to stop.
        """
        end = time.monotonic() + CONNECT_SECONDS
        while (found := self._present()) < (self._clients or 0) and time.monotonic() < end:
            self._check_stop()
            time.sleep(POLL_SECONDS)
        return found

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See flwr.serverapp.Grid."""
        self._check_stop()
        asked: list[Message] = []
        ids = self._grid.push_messages(self._heard(messages, asked))
        with self._lock:
            self._open.update({question.metadata.message_id: question for question in asked})
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See flwr.serverapp.Grid."""
        replies = self._grid.pull_messages(message_ids)
        self._check_stop()
        return self._told(replies, [])

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See flwr.serverapp.Grid."""
        self._check_stop()
        asked: list[Message] = []
        heard = self._heard(messages, asked)
        if self._stop is None:
            replies = self._grid.send_and_receive(heard, timeout=timeout)
        else:
            # Those of a generator are drawn here, as the app's own code makes them.
            drawn = heard if isinstance(heard, list | tuple) else list(heard)
            replies = self._received(drawn, timeout)
        self._check_stop()
        return self._told(replies, asked)

    def _received(self, messages: Iterable[Message], timeout: float | None) -> Iterable[Message]:
        """What the grid receives; it waits for all replies, so it does so in another thread."""
        received: Future[Iterable[Message]] = Future()

        def wait() -> None:
            try:
                received.set_result(self._grid.send_and_receive(messages, timeout=timeout))
            except BaseException as error:
                received.set_exception(error)

        threading.Thread(target=wait, daemon=True).start()
        while not futures_wait([received], POLL_SECONDS).done:
            self._check_stop()
        return received.result()

    def _check_stop(self) -> None:
        if self._stop is not None and self._stop.is_set():
            raise Stopped

    def _present(self) -> int:
        return len(list(self._grid.get_node_ids()))

    def _check_waiting(self) -> None:
        """Count for how long the app has asked for nodes and has sent nothing.

        Raises:
            FederationError: if it waits for more nodes than there are.
        """
        # Flower's API from before the Message API also asks in a thread that never stops.
        if self._clients is None or threading.get_ident() != self._thread:
            return
        now = time.monotonic()
        if self._last_asked is not None:
            self._waited += min(now - self._last_asked, LONGEST_GAP)
        self._last_asked = now
        if self._waited < WAITING_SECONDS or self._present() < self._clients:
            return
        raise FederationError(
            f"Expected as many clients as the app waits for, got {self._clients}: all of them are "
            "there, and the app goes on waiting for more. Give more by `--clients`, or have the "
            "app wait for fewer."
        )

    def _begin_anew(self) -> None:
        self._last_asked, self._waited = None, 0.0

    def _heard(self, messages: Iterable[Message], asked: list[Message]) -> Iterable[Message]:
        """The messages, which are added to ``asked``; those of a generator as they are drawn."""
        if isinstance(messages, list | tuple):
            for message in messages:
                self._hear(message, asked)
            return messages
        return self._drawn(messages, asked)

    def _drawn(self, messages: Iterable[Message], asked: list[Message]) -> Iterator[Message]:
        for message in messages:
            self._hear(message, asked)
            yield message

    def _hear(self, message: Message, asked: list[Message]) -> None:
        self._begin_anew()
        asked.append(message)
        self._call("asked", message)

    def _told(self, replies: Iterable[Message], asked: list[Message]) -> Iterable[Message]:
        """The replies, told to the listener; those of a generator as they are drawn.

        Args:
            replies: the replies.
            asked: the questions of this exchange. They have their ids only now.
        """
        if isinstance(replies, list | tuple):
            self._tell(replies, asked)
            return replies
        return self._passed_on(replies, asked)

    def _passed_on(self, replies: Iterable[Message], asked: list[Message]) -> Iterator[Message]:
        for reply in replies:
            self._tell([reply], asked)
            yield reply

    def _tell(self, replies: Iterable[Message], asked: list[Message]) -> None:
        own = {question.metadata.message_id: question for question in asked}
        for reply in replies:
            number = reply.metadata.reply_to_message_id
            with self._lock:
                question = own.get(number) or self._open.pop(number, None)
            if question is None:
                logger.warning("a reply to the unknown message %s is not heard", number)
            else:
                self._call("replied", question, reply)

    def _call(self, name: str, *messages: Message) -> None:
        try:
            with self._lock:
                getattr(self._listener, name)(*messages)
        except Exception as error:
            self.failures.append(error)
            logger.warning("what was heard is lost: %s", error)


@contextmanager
def waits_by_asking(grid: ListeningGrid) -> Iterator[None]:
    """Within the block, apps from before Flower's Message API that wait for clients ask a grid.

    They wait for a day otherwise, without a call by which the grid could end the run. The block is
    for the ServerApp's thread.

    Args:
        grid: the app's grid.
    """
    original = SimpleClientManager.wait_for

    def wait_for(self: SimpleClientManager, num_clients: int, timeout: int = 86400) -> bool:
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > ASK_SECONDS:
            if original(self, num_clients, timeout=ASK_SECONDS):  # type: ignore[arg-type]
                return True
            grid.get_node_ids()
        return original(self, num_clients, timeout=left)  # type: ignore[arg-type]

    SimpleClientManager.wait_for = wait_for  # type: ignore[method-assign]
    try:
        yield
    finally:
        SimpleClientManager.wait_for = original  # type: ignore[method-assign]
