"""The mean of updates, against sums by hand."""

import pytest
import torch

from fedleak.errors import BadInput
from fedleak.updates.compression import CompactTensors, encode
from fedleak.updates.files import Tensors
from fedleak.updates.mean_update import mean_of_updates
from fedleak.updates.update import InterceptedUpdate

SENT = {"w": torch.tensor([[1.0, 2.0]]), "n": torch.tensor(3)}


def update(
    client: int, received: Tensors, examples: int, protocol: str = "fedavg"
) -> InterceptedUpdate:
    return InterceptedUpdate(1, client, protocol, examples, "net", SENT, received)  # type: ignore[arg-type]


def test_weights_become_the_weighted_mean_of_their_changes() -> None:
    updates = [
        update(2, {"w": torch.tensor([[1.5, 2.0]]), "n": torch.tensor(4)}, examples=1),
        update(5, {"w": torch.tensor([[1.0, 6.0]]), "n": torch.tensor(9)}, examples=3),
    ]
    found = mean_of_updates(updates, 2)
    assert (found.client, found.clients, found.num_examples) == (2, 2, 4)
    assert (found.protocol, found.aggregation) == ("delta", "weighted_mean")
    assert {n: v.tolist() for n, v in found.received.items()} == {"w": [[0.125, 3.0]]}


def test_small_steps_are_not_lost() -> None:
    step = torch.tensor([[2.0**-23, 0.0]])
    found = mean_of_updates([update(c, {"w": SENT["w"] + step}, 1) for c in (0, 1, 2)], 0)
    assert found.received["w"][0, 0] == pytest.approx(2.0**-23, rel=1e-12)


def test_gradients_stay_gradients() -> None:
    dense = torch.outer(torch.tensor([2.0]), torch.tensor([1.0, -1.0]))
    encoded = encode({"w": dense}, {"w": (torch.tensor([2.0]), torch.tensor([1.0, -1.0]))})
    updates = [
        update(0, CompactTensors(encoded), 2, "fedsgd"),  # type: ignore[arg-type]
        update(1, CompactTensors({"w": torch.zeros(1, 2)}), 2, "fedsgd"),  # type: ignore[arg-type]
    ]
    found = mean_of_updates(updates, 0)
    assert found.protocol == "fedsgd"
    assert found.received["w"].tolist() == [[1.0, -1.0]]
    assert found.received["w"].dtype == torch.float32


def test_what_one_client_did_not_send_is_left_out() -> None:
    sent = SENT | {"b": torch.zeros(1)}
    both = [
        InterceptedUpdate(1, 0, "fedavg", 1, "net", sent, {"w": SENT["w"], "b": torch.ones(1)}),
        InterceptedUpdate(1, 1, "fedavg", 1, "net", sent, {"w": SENT["w"]}),
    ]
    assert set(mean_of_updates(both, 0).received) == {"w"}


def test_clients_that_differ() -> None:
    other = InterceptedUpdate(
        1, 1, "fedavg", 1, "net", {"w": torch.zeros(1, 2), "n": SENT["n"]}, {}
    )
    with pytest.raises(BadInput, match="sent the same weights and answer alike, but r0001-c0000"):
        mean_of_updates([update(0, {}, 1), other], 0)
    with pytest.raises(BadInput, match="answer alike"):
        mean_of_updates([update(0, {}, 1), update(1, {}, 1, "fedsgd")], 0)
