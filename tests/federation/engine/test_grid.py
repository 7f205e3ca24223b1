"""The Grid that puts nodes and replies in order."""

import threading
import time

import pytest
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID

from fedleak.federation import records
from fedleak.federation.engine.grid import OrderedGrid
from fedleak.federation.strategy import Stopped
from tests.federation.fakes import FakeGrid, fails

NUMBERS = {50: 2, 11: 0, 32: 3, 24: 1}


def identify(question: Message) -> Message:
    number = NUMBERS[question.metadata.dst_node_id]
    return Message(
        RecordDict({records.METRICS: MetricRecord({records.CLIENT: number})}), reply_to=question
    )


def echo(question: Message) -> Message | None:
    if question.metadata.message_type == MessageType.QUERY:
        return identify(question)
    return Message(question.content, reply_to=question)


def questions(*nodes: int) -> list[Message]:
    content = RecordDict({"config": ConfigRecord({"server-round": 1})})
    return [Message(content, node, MessageType.TRAIN) for node in nodes]


def ordered(grid: FakeGrid, **settings: object) -> tuple[OrderedGrid, list[int]]:
    told: list[int] = []
    defaults = {
        "clients": 4,
        "stop": threading.Event(),
        "on_reply": lambda client, reply: told.append(client),
    }
    return OrderedGrid(grid, **defaults | settings), told


def test_nodes_come_in_the_order_of_the_clients() -> None:
    grid, _ = ordered(FakeGrid(list(NUMBERS), echo))
    assert grid.clients == {11: 0, 24: 1, 50: 2, 32: 3}
    assert list(grid.get_node_ids()) == [11, 24, 50, 32]
    grid._grid.nodes.remove(24)  # one is gone
    assert list(grid.get_node_ids()) == [11, 50, 32]


def test_replies_are_sorted_and_reported_as_they_arrive() -> None:
    fake = FakeGrid(list(NUMBERS), echo)
    grid, told = ordered(fake)
    told.clear()
    replies = list(grid.send_and_receive(questions(24, 32, 11, 50), timeout=5))
    assert [grid.clients[reply.metadata.src_node_id] for reply in replies] == [0, 1, 2, 3]
    # The fake gives the last one first.
    assert told == [2, 0, 3, 1]


def test_replies_that_come_late_are_waited_for() -> None:
    calls = []

    def slowly(question: Message) -> Message | None:
        if question.metadata.message_type == MessageType.QUERY:
            return identify(question)
        calls.append(question.metadata.dst_node_id)
        return Message(question.content, reply_to=question)

    class Late(FakeGrid):
        def pull_messages(self, message_ids):
            mine = sorted(message_ids)
            return super().pull_messages(mine[:1])  # one at a time

    grid, told = ordered(Late(list(NUMBERS), slowly))
    told.clear()
    replies = grid.send_and_receive(questions(24, 32, 11, 50), timeout=5)
    assert len(replies) == len(told) == 4


def test_a_timeout_gives_up_the_missing_replies() -> None:
    def one_is_silent(question: Message) -> Message | None:
        if question.metadata.message_type == MessageType.TRAIN and (
            question.metadata.dst_node_id == 24
        ):
            return None
        return echo(question)

    grid, _ = ordered(FakeGrid(list(NUMBERS), one_is_silent))
    begin = time.monotonic()
    replies = grid.send_and_receive(questions(24, 32), timeout=0.5)
    assert 0.5 <= time.monotonic() - begin < 3
    assert [reply.metadata.src_node_id for reply in replies] == [32]


def test_errors_are_replies_too() -> None:
    def one_fails(question: Message) -> Message | None:
        if question.metadata.message_type == MessageType.TRAIN and (
            question.metadata.dst_node_id == 24
        ):
            return fails(question)
        return echo(question)

    grid, _ = ordered(FakeGrid(list(NUMBERS), one_fails))
    replies = list(grid.send_and_receive(questions(32, 24), timeout=5))
    assert [reply.has_error() for reply in replies] == [True, False]


def test_the_event_stops_the_waiting() -> None:
    def only_names(question: Message) -> Message | None:
        return identify(question) if question.metadata.message_type == MessageType.QUERY else None

    stop = threading.Event()
    grid, _ = ordered(FakeGrid(list(NUMBERS), only_names), stop=stop)
    threading.Timer(0.3, stop.set).start()
    begin = time.monotonic()
    with pytest.raises(Stopped):
        grid.send_and_receive(questions(24), timeout=60)
    assert time.monotonic() - begin < 5


def test_the_event_stops_the_waiting_for_clients() -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(Stopped):
        ordered(FakeGrid([11], echo), stop=stop)


def test_clients_that_do_not_answer_with_their_number_end_the_run() -> None:
    def broken(question: Message) -> Message:
        return fails(question, "no such module") if question.metadata.dst_node_id == 24 else echo(
            question
        )  # fmt: skip

    with pytest.raises(RuntimeError, match="only 3 of 4 clients are ready: no such module"):
        ordered(FakeGrid(list(NUMBERS), broken))


def test_clients_that_never_connect_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedleak.federation.engine.grid.HANDSHAKE_SECONDS", 0.3)
    with pytest.raises(RuntimeError, match="only 1 of 4 clients connected"):
        ordered(FakeGrid([11], echo))


def test_everything_else_is_the_inner_grid() -> None:
    grid, _ = ordered(FakeGrid(list(NUMBERS), echo))
    assert grid.run.run_id == 1
    assert grid.nodes == list(NUMBERS)
    ids = list(grid.push_messages(questions(11)))
    assert [m.metadata.src_node_id for m in grid.pull_messages(ids)] == [11]
    with pytest.raises(NotImplementedError):
        grid.create_message()
    with pytest.raises(NotImplementedError):
        grid.set_run(None)


def test_an_answer_of_flowers_own_counts_as_that_of_the_node() -> None:
    """Flower's SuperLink answers for a node that is gone, as the source of the reply."""

    def one_is_gone(question: Message) -> Message | None:
        if question.metadata.message_type == MessageType.QUERY:
            return identify(question)
        reply = fails(question, "node unavailable")
        reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        return reply if question.metadata.dst_node_id == 24 else echo(question)

    grid, told = ordered(FakeGrid(list(NUMBERS), one_is_gone))
    told.clear()
    replies = list(grid.send_and_receive(questions(32, 24), timeout=5))
    assert [reply.metadata.src_node_id for reply in replies] == [24, 32]
    assert [reply.has_error() for reply in replies] == [True, False]
    assert sorted(told) == [1, 3]


def test_a_message_that_flower_does_not_take_is_not_waited_for() -> None:
    class Refusing(FakeGrid):
        def push_messages(self, messages):
            given = list(messages)
            asked = [(one.metadata.message_type, one.metadata.dst_node_id) for one in given]
            ids = super().push_messages(given)
            return [
                None if pair == (MessageType.TRAIN, 24) else number
                for pair, number in zip(asked, ids, strict=True)
            ]

    grid, _ = ordered(Refusing(list(NUMBERS), echo))
    begin = time.monotonic()
    replies = grid.send_and_receive(questions(32, 24), timeout=20)
    assert time.monotonic() - begin < 10
    assert [reply.metadata.src_node_id for reply in replies] == [32]


@pytest.mark.parametrize(("numbers", "got"), [([0, 1, 1, 3], "1 twice"), ([0, 1, 2, 4], "4")])
def test_nodes_need_numbers_of_their_own(numbers: list[int], got: str) -> None:
    own = dict(zip(NUMBERS, numbers, strict=True))

    def tell(question: Message) -> Message:
        number = MetricRecord({records.CLIENT: own[question.metadata.dst_node_id]})
        return Message(RecordDict({records.METRICS: number}), reply_to=question)

    with pytest.raises(RuntimeError, match=f"`partition-id` from 0 to 3, each .*, got {got}"):
        ordered(FakeGrid(list(NUMBERS), tell))
