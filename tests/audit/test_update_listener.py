"""Updates that a listener keeps, against the weights that the clients have sent."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg as OldFedAvg
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedleak.audit.app import AuditSettings
from fedleak.audit.listening_grid import ListeningGrid
from fedleak.audit.update_listener import UpdateListener
from fedleak.federation import records
from fedleak.updates.files import Tensors, update_files
from fedleak.updates.update import InterceptedUpdate
from tests.federation.fakes import (
    FakeGrid,
    client_grid,
    context_of,
    fails,
    same_tensors,
    sends_gradient,
    sends_weights,
    train_question,
    weights,
)

NODES = [5, 3, 9]


def listening(
    folder: Path, answer: Callable[[Message], Message | None], **options: Any
) -> tuple[ListeningGrid, UpdateListener]:
    listener = UpdateListener(folder / "updates", folder / "replies.jsonl", **options)
    return ListeningGrid(FakeGrid(NODES, answer), listener), listener


def kept(folder: Path) -> dict[str, InterceptedUpdate]:
    files = update_files(folder / "updates")
    return {file.stem: InterceptedUpdate.load(file) for file in files}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()]


def by_node(question: Message, round_: int) -> Tensors:
    return weights(100 * round_ + question.metadata.dst_node_id)


def test_the_updates_of_a_strategy_are_those_that_the_clients_sent(tmp_path: Path) -> None:
    asked: list[Message] = []

    def answer(question: Message) -> Message:
        round_ = int(question.content["config"]["server-round"])  # type: ignore[arg-type]
        node = question.metadata.dst_node_id
        asked.append(question)
        if node == 3 and round_ == 2:
            return fails(question, "no memory")
        return sends_weights(question, by_node(question, round_), 10 + node, loss=0.5)

    called: list[tuple[str, str]] = []
    grid, _ = listening(
        tmp_path, answer, model="net", settings=AuditSettings(clients=(0, 1)),
        client_of={5: 1, 3: 0, 9: 7}.get,
        on_update=lambda question, path: called.append((question.metadata.message_id, path.stem)),
    )  # fmt: skip
    FedAvg(fraction_evaluate=0.0).start(grid, records.to_record(weights(0)), num_rounds=2)
    found = kept(tmp_path)
    assert list(found) == ["r0001-c0000", "r0001-c0001", "r0002-c0001"]
    for update, node in zip(found.values(), (3, 5, 5), strict=True):
        assert same_tensors(dict(update.received), weights(100 * update.round + node))
        assert (update.protocol, update.num_examples, update.model) == ("fedavg", 10 + node, "net")
        sent = next(q for q in asked if q.metadata.dst_node_id == node)
        assert same_tensors(found["r0001-c0000"].sent, weights(0))
        assert sent is not None
    means: Tensors = {
        name: sum((10 + n) * weights(100 + n)[name].double() for n in NODES) / 47  # type: ignore[misc]
        for name in weights(0)
    }
    for name, value in found["r0002-c0001"].sent.items():
        torch.testing.assert_close(value.double(), means[name], atol=1e-6, rtol=0)
    lines = rows(tmp_path)
    assert len(lines) == 6
    assert {line["reason"] for line in lines} == {None, "no memory", "the settings leave it out"}
    assert sum(line["update"] for line in lines) == 3
    first = next(line for line in lines if line["node"] == 5)
    assert (first["round"], first["client"], first["kind"]) == (1, 1, "train")
    assert (first["examples"], first["metrics"]) == (15, {"loss": 0.5})
    assert sorted(stem for _, stem in called) == list(found)


def question_of(node: int, group: str = "", config: dict[str, Any] | None = None) -> Message:
    content = RecordDict({"arrays": records.to_record(weights(0))})
    if config:
        content["config"] = ConfigRecord(config)
    return Message(content, node, MessageType.TRAIN, group_id=group)


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        # Counted: a batch of questions is a round, whichever clients it asks.
        ([[(5, "", {}), (3, "", {})], [(9, "", {})], [(9, "", {})]], [1, 1, 2, 3]),
        # The message tells it.
        ([[(5, "7", {})], [(5, "8", {}), (3, "8", {})]], [7, 8, 8]),
        ([[(5, "train", {"server-round": 4})], [(3, "", {"server-round": 9})]], [4, 9]),
        # What does not change is no round.
        (
            [[(5, "1", {}), (3, "1", {})], [(5, "1", {}), (3, "1", {})], [(3, "1", {})]],
            [1, 1, 2, 2, 3],
        ),
        ([[(5, "0", {}), (5, "-1", {})]], [1, 2]),
    ],
)
def test_rounds_are_told_or_counted(
    batches: list[list[tuple[int, str, dict[str, Any]]]], expected: list[int], tmp_path: Path
) -> None:
    grid, _ = listening(tmp_path, lambda q: sends_weights(q, weights(1), 1))
    for batch in batches:
        list(grid.send_and_receive([question_of(*parts) for parts in batch]))
    found = sorted(line["round"] for line in rows(tmp_path))
    assert found == expected
    assert len(kept(tmp_path)) == len(expected)


def test_weights_of_ones_own_records_of_other_names_and_gradients(tmp_path: Path) -> None:
    """The sent weights of a client go with its update where they are not those of the round."""

    def answer(question: Message) -> Message:
        node = question.metadata.dst_node_id
        if node == 5:
            content = RecordDict({
                "variates": records.to_record(weights(8)),
                "net": ArrayRecord([value.numpy() for value in weights(5).values()]),
                "info": MetricRecord({"num_samples": 4, "loss": 1.0}),
            })  # fmt: skip
            return Message(content, reply_to=question)
        if node == 3:
            return sends_gradient(
                question, weights(3), buffers={"norm.running_mean": torch.ones(4)}
            )
        return sends_weights(question, {"layer.weight": torch.zeros(7)}, 1)

    grid, _ = listening(tmp_path, answer)
    contents = {
        node: RecordDict({"net": records.to_record(weights(node % 2)), "config": ConfigRecord({})})
        for node in (5, 3)
    }
    contents[9] = RecordDict({"net": records.to_record(weights(0))})
    list(grid.send_and_receive([Message(c, n, "train") for n, c in contents.items()]))
    found = kept(tmp_path)
    numbers = {line["node"]: line["client"] for line in rows(tmp_path)}
    listed, gradient = found[f"r0001-c{numbers[5]:04d}"], found[f"r0001-c{numbers[3]:04d}"]
    assert same_tensors(dict(listed.received), weights(5))
    assert (listed.num_examples, listed.protocol) == (4, "fedavg")
    assert gradient.protocol == "fedsgd"
    assert same_tensors(
        {name: gradient.received[name] for name in gradient.received},
        weights(3) | {"norm.running_mean": torch.ones(4)},
    )
    for update in (listed, gradient):
        assert same_tensors(update.sent, weights(1))
    (fault,) = [line["reason"] for line in rows(tmp_path) if line["node"] == 9]
    assert fault == "its array 'layer.weight' is of shape (7,) instead of (4, 3)"

    # Sent weights that differ within a round.
    other = tmp_path / "other"
    grid, _ = listening(other, lambda q: sends_weights(q, weights(1), 1))
    list(grid.send_and_receive([train_question(node, weights(node)) for node in NODES]))
    for line in rows(other):
        update = kept(other)[f"r0001-c{line['client']:04d}"]
        assert same_tensors(update.sent, weights(line["node"]))


def test_messages_without_arrays_are_told_apart(tmp_path: Path) -> None:
    grid, _ = listening(tmp_path, lambda q: Message(RecordDict(), reply_to=q))
    list(
        grid.send_and_receive(
            [Message(RecordDict(), 5, "train"), Message(RecordDict(), 3, "query")]
        )
    )
    list(grid.send_and_receive([train_question(9, weights(0))]))
    reasons = {line["node"]: line["reason"] for line in rows(tmp_path)}
    assert reasons == {
        5: "the server sent no arrays with the message", 3: None, 9: "it has no arrays",
    }  # fmt: skip


class OldClient(NumPyClient):
    """A client from before the Message API, which trains a linear layer by one step."""

    def __init__(self, number: int) -> None:
        self.number = number

    def fit(self, parameters: list[Any], config: dict[str, Any]) -> Any:
        return [value + (1 + self.number) for value in parameters], 20 + self.number, {"loss": 0.25}

    def evaluate(self, parameters: list[Any], config: dict[str, Any]) -> Any:
        return 1.0, 3, {"accuracy": 0.5}


def test_an_app_of_before_the_message_api(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    start = [value.numpy().copy() for value in model.state_dict().values()]
    server = ServerApp(
        server_fn=lambda _: ServerAppComponents(
            strategy=OldFedAvg(initial_parameters=ndarrays_to_parameters(start)),
            config=ServerConfig(num_rounds=2),
        )
    )
    client = ClientApp(lambda c: OldClient(int(c.node_config["partition-id"])).to_client())
    listener = UpdateListener(tmp_path / "updates", tmp_path / "replies.jsonl")
    grid = ListeningGrid(client_grid(client, 3), listener)
    server(grid, context_of(0))
    assert not grid.failures
    found = kept(tmp_path)
    assert list(found) == [f"r{r:04d}-c{c:04d}" for r in (1, 2) for c in range(3)]
    assert sorted(update.num_examples for update in found.values()) == [20, 20, 21, 21, 22, 22]
    first = next(u for u in found.values() if u.round == 1 and u.num_examples == 21)
    by_name = first.for_model(model)
    for name, value in model.state_dict().items():
        assert torch.equal(by_name.sent[name], value)
        assert torch.equal(by_name.received[name], value + 2)
    trained = [line for line in rows(tmp_path) if line["kind"] == "train"]
    assert all(line["metrics"] == {"loss": 0.25} for line in trained)
    assert sum(line["kind"] == "evaluate" for line in rows(tmp_path)) == 6


def test_a_client_without_a_number_is_not_kept(tmp_path: Path) -> None:
    grid, _ = listening(tmp_path, lambda q: sends_weights(q, weights(1), 1), client_of={5: 2}.get)
    list(grid.send_and_receive([train_question(node, weights(0)) for node in NODES]))
    assert list(kept(tmp_path)) == ["r0001-c0002"]
    unknown = [line["reason"] for line in rows(tmp_path) if line["client"] is None]
    assert unknown == ["the number of its client is not known"] * 2


def test_files_of_another_run_are_replaced(tmp_path: Path) -> None:
    for seed in (1, 2):
        grid, _ = listening(tmp_path, lambda q, s=seed: sends_weights(q, weights(s), 1))
        nodes: Iterable[int] = NODES[:seed]
        list(grid.send_and_receive([train_question(node, weights(7 * seed)) for node in nodes]))
    grid, _ = listening(tmp_path, lambda q: sends_weights(q, weights(3), 1))
    list(grid.send_and_receive([train_question(5, weights(9))]))
    (update,) = kept(tmp_path).values()
    assert same_tensors(update.sent, weights(9))
    assert same_tensors(dict(update.received), weights(3))
    assert isinstance(np.asarray(update.received["layer.bias"]), np.ndarray)
