"""A Grid that lets a listener hear every message between a ServerApp and its clients."""

import logging
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as futures_wait
from typing import Any, Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from fedleak.federation.strategy import Stopped

logger = logging.getLogger(__name__)

# Seconds between two looks at whether the run was told to stop.
POLL_SECONDS = 0.1


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


class ListeningGrid(Grid):
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

    Attributes:
        failures: what the listener has raised.

    Raises:
        Stopped: if the run was told to stop.
    """

    def __init__(
        self, grid: Grid, listener: Listener, *, stop: threading.Event | None = None
    ) -> None:
        self._grid = grid
        self._listener = listener
        self._stop = stop
        self._lock = threading.RLock()
        self._open: dict[str, Message] = {}
        self.failures: list[Exception] = []

    def __getattr__(self, name: str) -> Any:
        if name == "_grid":
            raise AttributeError(name)
        return getattr(self._grid, name)

    def set_run(self, run: Any) -> None:
        """See flwr.serverapp.Grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """See flwr.serverapp.Grid."""
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """See flwr.serverapp.Grid."""
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """See flwr.serverapp.Grid."""
        self._check_stop()  # servers wait for nodes in a loop
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """See flwr.serverapp.Grid."""
        self._check_stop()
        return self._grid.get_nodes()

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
