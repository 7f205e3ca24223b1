"""Federations without Ray: replies made by the test, a Grid whose nodes are in this process."""

import threading
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from flwr.app import (
    Array,
    ConfigRecord,
    Context,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from fedleak.config import RunConfig
from fedleak.federation import records
from fedleak.federation.engine.virtual_clients import num_supernodes
from fedleak.runtime.quiet import quiet
from fedleak.updates.files import Tensors

FAILED = 1

# Flower's engine sets these in its process; without them no message can be made.
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def weights(seed: int, *, scale: float = 1.0) -> Tensors:
    """Weights of a small imaginary model: a matrix, a bias and a running mean."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"layer.weight": (4, 3), "layer.bias": (4,), "norm.running_mean": (4,)}
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def sends_weights(question: Message, tensors: Tensors, examples: int, **metrics: float) -> Message:
    """A client's reply of the protocol fedavg."""
    content = RecordDict({
        records.ARRAYS: records.to_record(tensors),
        records.METRICS: MetricRecord({**metrics, records.EXAMPLES: examples}),
    })  # fmt: skip
    return Message(content, reply_to=question)


def sends_gradient(
    question: Message,
    gradient: Tensors,
    buffers: Tensors | None = None,
    examples: int = 1,
    **metrics: float,
) -> Message:
    """A client's reply of the protocol fedsgd."""
    content: dict[str, Any] = {
        records.GRADIENT: records.to_record(gradient),
        records.METRICS: MetricRecord({**metrics, records.EXAMPLES: examples}),
    }
    if buffers:
        content[records.BUFFERS] = records.to_record(buffers)
    return Message(RecordDict(content), reply_to=question)


def fails(question: Message, reason: str = "out of memory") -> Message:
    """A client's reply after an exception."""
    return Message(Error(FAILED, reason), reply_to=question)


def train_question(node: int, sent: Tensors, round_: int = 1) -> Message:
    """The server's message of a training round."""
    content = RecordDict({
        records.ARRAYS: records.to_record(sent),
        records.CONFIG: ConfigRecord({records.ROUND: round_}),
    })  # fmt: skip
    return Message(content, node, MessageType.TRAIN)


def ask(
    app: ClientApp, client: int, sent: Tensors, *, round_: int = 1, kind: str = MessageType.TRAIN
) -> RecordDict:
    """The content of a ClientApp's reply, called as Flower calls it."""
    question = train_question(client, sent, round_)
    question = Message(question.content, client, kind)
    return app(question, context_of(client)).content


def context_of(client: int) -> Context:
    """The Context that the simulation engine gives to a client."""
    return Context(0, client, {"partition-id": client}, RecordDict(), {})


def same_tensors(left: Tensors, right: Tensors) -> bool:
    """Whether two sets of tensors have the same names and are the same to the last bit."""
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


class Overflowing(FedAvg):
    """A strategy whose result of the second round is infinite."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        if server_round == 2 and arrays is not None:
            for name in list(arrays):
                arrays[name] = Array(np.full_like(arrays[name].numpy(), np.inf))
        return arrays, metrics


class FakeGrid(Grid):
    """A Grid that answers questions by a function; replies come back last one first.

    Args:
        nodes: ids of the nodes, in the order in which Flower would hand them out.
        answer: returns the reply to a question, or None for a client that does not answer.
    """

    def __init__(self, nodes: Sequence[int], answer: Callable[[Message], Message | None]) -> None:
        self.nodes = list(nodes)
        self.pushed: list[Message] = []
        self._run = SimpleNamespace(run_id=1)
        self._lock = threading.Lock()  # strategies of before the Message API ask in threads
        self._answer = answer
        self._waiting: dict[str, Message | None] = {}

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        return self._run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self.pushed.append(message)
            ids.append(str(uuid4()))
            message.metadata.__dict__["_message_id"] = ids[-1]
            with self._lock:
                self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        with self._lock:
            wanted = [n for n in self._waiting if n in set(message_ids)]
            questions = [self._waiting.pop(number) for number in reversed(wanted)]
        for question in questions:
            reply = None if question is None else self._answer(question)
            if reply is not None:
                replies.append(reply)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))


def client_grid(app: ClientApp, clients: int) -> FakeGrid:
    """A Grid of nodes with unordered ids that call a ClientApp in this process."""
    contexts = {(7919 * (client + 1)) % 104729: context_of(client) for client in range(clients)}

    def answer(question: Message) -> Message:
        try:
            return app(question, contexts[question.metadata.dst_node_id])
        except Exception as error:
            return fails(question, f"Exception ClientAppException occurred. Message: {error}'>")

    return FakeGrid(sorted(contexts, key=lambda node: -node), answer)


def run_in_process(
    config: RunConfig, server: ServerApp, client: ClientApp, control: object = None
) -> None:
    """Replaces ``fedleak.federation.engine.simulation.run_on_ray`` in tests.

    As there, the server runs in a thread of its own, and its exception is raised here.
    """
    caught: list[BaseException] = []
    grid = client_grid(client, num_supernodes(config))

    def serve() -> None:
        try:
            server(grid=grid, context=context_of(0))
        except Exception as error:
            caught.append(error)

    with quiet():
        thread = threading.Thread(target=serve)
        thread.start()
        thread.join()
    if caught:
        raise caught[0]
