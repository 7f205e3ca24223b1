"""The grid that listens: what it passes on, what it tells, and when it must not matter."""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MessageType
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.run import RunNotRunningException

from fedleak.audit.listening_grid import ListeningGrid
from fedleak.federation import records
from fedleak.federation.engine.ray_engine import FederationError
from fedleak.federation.strategy import Stopped
from tests.federation.fakes import (
    FakeGrid,
    fails,
    same_tensors,
    sends_weights,
    train_question,
    weights,
)

NODES = [5, 3, 9]


class Hears:
    """A listener that keeps what it is told, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.questions: list[Message] = []
        self.pairs: list[tuple[Message, Message]] = []
        self.error = error

    def asked(self, question: Message) -> None:
        self.questions.append(question)
        if self.error is not None:
            raise self.error

    def replied(self, question: Message, reply: Message) -> None:
        self.pairs.append((question, reply))
        if self.error is not None:
            raise self.error


class LazyGrid(FakeGrid):
    """A Grid whose replies are generators, which draw the questions when they are drawn."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        yield from super().send_and_receive(messages, timeout=timeout)


def answer(question: Message) -> Message | None:
    """Weights that depend on the node; node 3 fails."""
    node = question.metadata.dst_node_id
    return fails(question) if node == 3 else sends_weights(question, weights(node), node)


def exchanged(grid: Grid, messages: Iterable[Message]) -> list[Message]:
    return list(grid.send_and_receive(messages, timeout=1.0))


def pushed(grid: Grid, messages: Iterable[Message]) -> list[Message]:
    ids = list(grid.push_messages(messages))
    # Replies are pulled one by one, in another order.
    return [reply for number in reversed(ids) for reply in grid.pull_messages([number])]


@pytest.mark.parametrize("send", [exchanged, pushed])
@pytest.mark.parametrize("kind", [FakeGrid, LazyGrid])
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("stop", [None, threading.Event()], ids=["", "stoppable"])
def test_everything_passes_and_is_told(
    send: Callable[[Grid, Iterable[Message]], list[Message]],
    kind: type[FakeGrid],
    lazy: bool,
    stop: threading.Event | None,
) -> None:
    inner, hears = kind(NODES, answer), Hears()
    grid = ListeningGrid(inner, hears, stop=stop)
    questions = [train_question(node, weights(0)) for node in NODES]
    replies = send(grid, (q for q in questions) if lazy else questions)
    # The very objects, in the order of the grid.
    assert [id(q) for q in inner.pushed] == [id(q) for q in questions]
    assert [id(q) for q in hears.questions] == [id(q) for q in questions]
    assert [id(reply) for _, reply in hears.pairs] == [id(reply) for reply in replies]
    assert [reply.metadata.src_node_id for reply in replies] == NODES[::-1]
    assert all(q.metadata.dst_node_id == r.metadata.src_node_id for q, r in hears.pairs)
    assert all(any(q is known for known in questions) for q, _ in hears.pairs)
    assert not grid.failures
    assert not grid._open


def test_a_list_of_replies_stays_the_same_list() -> None:
    class Kept(FakeGrid):
        last: Any = None

        def send_and_receive(self, messages: Iterable[Message], **_: Any) -> Iterable[Message]:
            self.last = super().send_and_receive(messages)
            return self.last

    inner = Kept(NODES, answer)
    grid = ListeningGrid(inner, Hears())
    assert grid.send_and_receive([train_question(5, weights(0))]) is inner.last


def test_what_the_grid_has_besides_is_reached() -> None:
    inner = FakeGrid(NODES, answer)
    inner.extra = "more"  # type: ignore[attr-defined]
    grid = ListeningGrid(inner, Hears())
    assert (grid.extra, grid.run, grid.get_node_ids()) == ("more", inner.run, NODES)
    assert [node.node_id for node in grid.get_nodes()] == NODES
    with pytest.raises(AttributeError, match="nothing"):
        _ = grid.nothing


@pytest.mark.parametrize("error", [None, ValueError("full disk")])
def test_a_strategy_gets_the_same_weights_whatever_the_listener_does(
    error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    def run(wrap: Callable[[Grid], Grid]) -> dict[str, torch.Tensor]:
        grid = wrap(FakeGrid(NODES, answer))
        strategy = FedAvg(fraction_evaluate=0.0)
        result = strategy.start(grid, records.to_record(weights(0)), num_rounds=2)
        return records.to_tensors(result.arrays)

    hears = Hears(error)
    listening: list[ListeningGrid] = []

    def wrapped(grid: Grid) -> Grid:
        listening.append(ListeningGrid(grid, hears))
        return listening[0]

    assert same_tensors(run(lambda grid: grid), run(wrapped))
    assert len(hears.pairs) == len(hears.questions) == 6
    assert len(listening[0].failures) == (12 if error else 0)
    assert ("full disk" in caplog.text) == (error is not None)


def test_an_unknown_reply_is_passed_on() -> None:
    inner, hears = FakeGrid(NODES, answer), Hears()
    ids = list(inner.push_messages([train_question(5, weights(0))]))
    (reply,) = ListeningGrid(inner, hears).pull_messages(ids)
    assert reply.metadata.src_node_id == 5
    assert not hears.pairs


@pytest.mark.parametrize("call", ["send_and_receive", "push_messages", "pull_messages"])
def test_a_run_that_is_told_to_stop_ends(call: str) -> None:
    stop = threading.Event()
    grid = ListeningGrid(FakeGrid(NODES, answer), Hears(), stop=stop)
    stop.set()
    with pytest.raises(Stopped):
        getattr(grid, call)([])
    with pytest.raises(Stopped):
        grid.get_node_ids()
    with pytest.raises(Stopped):
        grid.get_nodes()


def test_a_thread_that_asks_for_nodes_is_ended_as_flower_ends_it() -> None:
    stop = threading.Event()
    grid, ended = ListeningGrid(FakeGrid(NODES, answer), Hears(), stop=stop), threading.Event()
    stop.set()

    def asks() -> None:
        try:
            grid.get_node_ids()
        except RunNotRunningException:
            ended.set()

    thread = threading.Thread(target=asks)
    thread.start()
    thread.join()
    assert ended.is_set()


def test_it_stops_while_it_waits_for_replies() -> None:
    stop, going = threading.Event(), threading.Event()

    class Waits(FakeGrid):
        def send_and_receive(self, messages: Iterable[Message], **_: Any) -> Iterable[Message]:
            stop.set()
            going.wait(60)
            return []

    with pytest.raises(Stopped):
        ListeningGrid(Waits(NODES, answer), Hears(), stop=stop).send_and_receive([])
    going.set()


def test_what_the_grid_raises_is_passed_on() -> None:
    class Fails(FakeGrid):
        def send_and_receive(self, messages: Iterable[Message], **_: Any) -> Iterable[Message]:
            raise ConnectionError("no link")

    grid = ListeningGrid(Fails(NODES, answer), Hears(), stop=threading.Event())
    with pytest.raises(ConnectionError, match="no link"):
        grid.send_and_receive([])


def test_loops_without_a_strategy_are_heard() -> None:
    """Messages of other kinds, made in a loop of one's own."""
    inner, hears = FakeGrid(NODES, answer), Hears()
    grid = ListeningGrid(inner, hears)
    content = train_question(5, weights(0)).content
    for kind in (MessageType.TRAIN, "train.fine_tune", MessageType.QUERY, MessageType.EVALUATE):
        grid.push_messages([Message(content, 5, kind, group_id="7")])
    for question in hears.questions:
        assert list(grid.pull_messages([question.metadata.message_id]))
    assert [q.metadata.message_type for q, _ in hears.pairs] == [
        "train", "train.fine_tune", "query", "evaluate",
    ]  # fmt: skip
    assert isinstance(hears.pairs[0][1].content["arrays"], ArrayRecord)


class Clock:
    """Time that passes only as the test says."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("fedleak.audit.listening_grid.time", made)
    return made


def test_an_app_that_only_asks_for_nodes_is_ended(clock: Clock) -> None:
    grid = ListeningGrid(FakeGrid(NODES, answer), Hears(), clients=3)

    def asks(times: int, gap: float) -> None:
        for _ in range(times):
            grid.get_node_ids()
            clock.sleep(gap)

    asks(2, 1000.0)  # the app does something else meanwhile
    asks(20, 1.0)
    grid.send_and_receive([train_question(5, weights(0))])
    asks(30, 1.0)
    with pytest.raises(FederationError, match="as many clients as the app waits for, got 3"):
        asks(1, 1.0)


def test_an_app_that_waits_for_nodes_to_come_is_not_ended(clock: Clock) -> None:
    for grid in (
        ListeningGrid(FakeGrid(NODES, answer), Hears(), clients=4),
        ListeningGrid(FakeGrid(NODES, answer), Hears()),
    ):
        for _ in range(100):
            assert grid.get_node_ids() == NODES
            clock.sleep(1.0)


def test_threads_of_the_app_that_ask_on_and_on_do_not_end_it(clock: Clock) -> None:
    """As that of Flower's API from before the Message API, while the server evaluates."""
    grid, failed = ListeningGrid(FakeGrid(NODES, answer), Hears(), clients=3), list[Exception]()

    def asks() -> None:
        try:
            for _ in range(100):
                grid.get_node_ids()
                clock.sleep(1.0)
        except FederationError as error:
            failed.append(error)

    thread = threading.Thread(target=asks)
    thread.start()
    thread.join()
    assert not failed


def test_waiting_for_nodes_has_an_end(clock: Clock) -> None:
    assert ListeningGrid(FakeGrid(NODES, answer), Hears(), clients=3).wait_for_nodes() == 3
    assert clock.now == 0
    assert ListeningGrid(FakeGrid(NODES, answer), Hears(), clients=4).wait_for_nodes() == 3
    assert clock.now == pytest.approx(60, abs=1)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        ListeningGrid(FakeGrid(NODES, answer), Hears(), stop=stop, clients=4).wait_for_nodes()
