"""Flower apps of fedleak's own run, without Flower's engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedleak.federation import client_in_app
from tests.federation.fakes import FakeGrid, fails
from tests.federation.runs import tiny_data


def tiny_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The run config of four clients on a file of ``tiny_data``, attacked in closed form."""
    return {
        "output": str(folder / "run"), "data": "npz", "data.path": str(tiny_data(folder)),
        "model": "smlp", "model.width": 12, "attack": "rgap", "labels": "recovered",
        "clients": 4, "rounds": 2, "batch-size": 1,
    } | {key.replace("__", "."): value for key, value in changes.items()}  # fmt: skip


def answering(
    settings: Mapping[str, Any],
    nodes: Mapping[int, Mapping[str, Any]],
    client: ClientApp | None = None,
) -> Any:
    """A function that answers the messages to nodes as the ClientApp of an app does.

    Args:
        settings: the run config.
        nodes: configuration of each node by its id.
        client: the ClientApp. If None, that of ``client_in_app``.
    """
    contexts = {
        node: Context(1, node, dict(own), RecordDict(), dict(settings))
        for node, own in nodes.items()
    }

    def answer(question: Message) -> Message:
        context = contexts[question.metadata.dst_node_id]
        try:
            return (client or client_in_app(question, context))(question, context)
        except Exception as error:
            return fails(question, f"{type(error)}:<'{error}'>")

    return answer


class InMemoryGrid(FakeGrid):
    """A grid of the name of that of Flower's simulation."""


def simulated_grid(settings: Mapping[str, Any], client: ClientApp | None = None) -> InMemoryGrid:
    """A simulation of Flower with two SuperNodes."""
    nodes = {71: {"partition-id": 0}, 35: {"partition-id": 1}}
    return InMemoryGrid(list(nodes), answering(settings, nodes, client))


def deployed_grid(
    settings: Mapping[str, Any], *own: Mapping[str, Any], client: ClientApp | None = None
) -> FakeGrid:
    """Four nodes of a deployment, each with its configuration; or others."""
    given = own or [{"partition-id": number, "num-partitions": 4} for number in range(4)]
    nodes = {900 - 7 * number: config for number, config in enumerate(given)}
    return FakeGrid(list(nodes), answering(settings, nodes, client))
