"""Many clients on a few SuperNodes."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict

from fedleak import experiment
from fedleak.config import Federation
from fedleak.federation import records
from fedleak.federation.engine import virtual_clients
from fedleak.federation.engine.virtual_clients import (
    MAX_SUPERNODES,
    SUPERNODES_PER_WORKER,
    VIRTUAL_CLIENT,
    VirtualClientGrid,
    client_number,
    num_supernodes,
)
from tests.federation.fakes import FakeGrid, context_of
from tests.federation.runs import Recorder, nothing_left_running
from tests.federation.user_runs import USERS, config, run

# A mod of Flower, which may keep state in its node.
MOD = {"class_path": "flwr.clientapp.mod.LocalDpMod", "init_args": {}}


def echo(question: Message) -> Message:
    return Message(question.content, reply_to=question)


def questions(*nodes: int) -> list[Message]:
    content = RecordDict({records.CONFIG: ConfigRecord({records.ROUND: 1})})
    return [Message(content, node, MessageType.TRAIN) for node in nodes]


def test_messages_are_sent_to_the_supernodes_in_turn_and_name_the_client() -> None:
    inner = FakeGrid([70, 80], echo)
    grid = VirtualClientGrid(inner, 5, {"truth": "/runs/truth"})
    assert list(grid.get_node_ids()) == [1, 2, 3, 4, 5]
    ids = list(grid.push_messages(questions(5, 1, 3)))
    assert [message.metadata.dst_node_id for message in inner.pushed] == [70, 80, 70]
    other_context = context_of(99)
    assert [client_number(message, other_context) for message in inner.pushed] == [4, 0, 2]
    for message in inner.pushed:
        assert message.content.config_records[records.CONFIG][records.ROUND] == 1
        assert message.content.config_records[VIRTUAL_CLIENT]["truth"] == "/runs/truth"
    # The fake returns the last reply first.
    replies = list(grid.pull_messages(ids))
    assert [reply.metadata.src_node_id for reply in replies] == [3, 1, 5]
    assert [client_number(reply, other_context) for reply in replies] == [2, 0, 4]


def test_waiting_is_left_to_the_ordered_grid() -> None:
    grid = VirtualClientGrid(FakeGrid([7], echo), 3)
    with pytest.raises(TypeError, match="Expected an OrderedGrid around VirtualClientGrid"):
        grid.send_and_receive(questions(1))
    assert grid.run.run_id == 1


def test_without_a_virtual_client_the_node_has_its_own_number() -> None:
    (message,) = questions(1)
    context: Context = context_of(6)
    assert client_number(message, context) == 6


@pytest.mark.parametrize(
    ("clients", "settings", "expected"),
    [
        (MAX_SUPERNODES, {}, MAX_SUPERNODES),
        (1000, {"cpus_per_client": 1.0}, 4 * SUPERNODES_PER_WORKER),
        (1000, {"cpus_per_client": 3.0}, SUPERNODES_PER_WORKER),
        (1000, {"cpus_per_client": 8.0}, SUPERNODES_PER_WORKER),
        (70, {"cpus_per_client": 0.25}, 70),
        (1000, {"ray_address": "127.0.0.1:6379"}, MAX_SUPERNODES),
        (1000, {"protocol": "fedavg", "mods": [MOD]}, 1000),
    ],
)
def test_number_of_supernodes(
    clients: int,
    settings: dict[str, object],
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(virtual_clients, "available_cores", lambda: 4)
    federation = Federation(clients=clients, **settings)
    assert num_supernodes(replace(config(Path("unused")), federation=federation)) == expected


def test_a_few_supernodes_give_the_same_results_as_one_for_each_client(tmp_path: Path) -> None:
    metrics = []
    for count in (5, USERS):
        settings = config(tmp_path / str(count))
        few = {"SUPERNODES_PER_WORKER": count, "available_cores": lambda: 1}
        with mock.patch.multiple("fedleak.federation.engine.virtual_clients", **few):
            metrics.append(run(settings)[1])
    assert metrics[0] == metrics[1]
    assert list(metrics[0]) == [0, 1, 2]


@pytest.mark.slow
def test_ray_gives_the_results_of_one_process(tmp_path: Path) -> None:
    alone = run(config(tmp_path / "alone"))[1]
    observer = Recorder()
    with nothing_left_running():
        experiment.run(config(tmp_path / "ray"), [observer])
    found = {r: metrics for _, r, metrics in observer.arguments("round_evaluated")}
    assert found == alone
