"""What a malicious server sends and what comes back: groups of rounds, files, refusals."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedleak.errors import BadInput
from fedleak.servers import Crafted, Reading
from fedleak.servers.exchanges import Exchanges, check_crafted, check_reading
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate
from tests.servers.toy_servers import FirstLayer

SHAPE = (1, 3, 3)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2))


def begun(server: FirstLayer, **options: Any) -> Exchanges:
    def knowledge(update: InterceptedUpdate, crafted: Crafted | None) -> Knowledge:
        return Knowledge(model(), SHAPE, 2, num_samples=1, labels=torch.tensor([1]))

    return Exchanges(server, knowledge, **options)


def ask(exchanges: Exchanges, round_: int, client: int, folder: Path | None = None) -> Tensors:
    """One exchange with a client whose only sample has all pixels equal to its number plus 1."""
    sent = dict(model().state_dict())
    crafted = exchanges.craft(InterceptedUpdate(round_, client, "fedsgd", 0, "net", sent, {}))
    own = model()
    own.load_state_dict(crafted.weights)
    sample = torch.full((1, *SHAPE), client + 1.0)
    loss = nn.functional.cross_entropy(own(sample), torch.tensor([1]))
    gradient = torch.autograd.grad(loss, list(own.parameters()))
    received = {n: g for (n, _), g in zip(own.named_parameters(), gradient, strict=True)}
    update = InterceptedUpdate(round_, client, "fedsgd", 1, "net", crafted.weights, received)
    kept = None if folder is None else update.save(folder, own=True)
    exchanges.answered(update, kept)
    return crafted.weights


def numbers(exchanges: Exchanges) -> list[list[tuple[int, int]]]:
    return [[(each.client, each.round) for each in group] for group in exchanges.groups()]


def test_rounds_are_read_together_and_each_once() -> None:
    exchanges = begun(FirstLayer(rounds=2))
    for round_, clients in ((1, (0, 4)), (2, (4,)), (3, (0, 4)), (4, (4,))):
        exchanges.begin_round(round_)
        for client in clients:
            ask(exchanges, round_, client)
    assert numbers(exchanges) == [[(0, 1), (0, 3)], [(4, 1), (4, 2)], [(4, 3), (4, 4)]]
    assert exchanges.unread() == {}
    ask(exchanges, 5, 0)
    assert exchanges.unread() == {0: 1}
    reading = exchanges.read(exchanges.groups()[1])
    torch.testing.assert_close(reading.inputs, torch.full((2, *SHAPE), 5.0))


def test_the_rounds_before_an_interruption_are_found_and_the_broken_one_is_forgotten(
    tmp_path: Path,
) -> None:
    updates, sent = tmp_path / "updates", tmp_path / "sent"
    updates.mkdir()
    first = begun(FirstLayer(rounds=2), sent=sent, updates=updates)
    for round_ in (1, 2, 3):
        first.begin_round(round_)
        ask(first, round_, 7, updates)
    again = begun(FirstLayer(rounds=2), sent=sent, updates=updates)
    assert numbers(again) == numbers(first) == [[(7, 1), (7, 2)]]
    assert again.unread() == {7: 1}
    assert torch.equal(again.read(again.groups()[0]).inputs, first.read(first.groups()[0]).inputs)
    again.begin_round(2)
    assert sorted(path.stem for path in sent.iterdir()) == ["r0001-c0007"]
    assert again.unread() == {7: 1}
    ask(again, 2, 7, updates)
    assert numbers(again) == [[(7, 1), (7, 2)]]


def test_an_unanswered_message_is_no_exchange(tmp_path: Path) -> None:
    exchanges = begun(FirstLayer(), sent=tmp_path)
    exchanges.begin_round(1)
    sent = dict(model().state_dict())
    exchanges.craft(InterceptedUpdate(1, 0, "fedsgd", 0, "net", sent, {}))
    assert [path.name for path in tmp_path.iterdir()] == ["r0001-c0000.safetensors"]
    assert exchanges.groups() == []
    assert exchanges.unread() == {}


def test_labels_and_the_model_stay_away_from_the_server() -> None:
    seen = []

    class Curious(FirstLayer):
        def craft(self, knowledge: Knowledge, **given: Any) -> Crafted:
            seen.append(knowledge)
            with torch.no_grad():
                knowledge.model[1].weight.zero_()
            return super().craft(knowledge, **given)

    kept = model()
    exchanges = Exchanges(
        Curious(), lambda update, crafted: Knowledge(kept, SHAPE, 2, labels=torch.tensor([1]))
    )
    exchanges.craft(InterceptedUpdate(1, 0, "fedsgd", 0, "net", dict(kept.state_dict()), {}))
    assert seen[0].labels is None
    assert torch.equal(kept[1].weight, model()[1].weight)


def test_clients_that_ignore_what_is_set_are_named() -> None:
    exchanges = begun(FirstLayer(rate=1e-9), names=("batch",))
    sent = dict(model().state_dict())
    with pytest.raises(BadInput, match=r"they ignore `lr`: name them in `federation\.obeys`"):
        exchanges.craft(InterceptedUpdate(1, 0, "fedsgd", 0, "net", sent, {}))


def test_weights_by_other_names_are_refused() -> None:
    sent = {"0": torch.rand(5, 9)}
    with pytest.raises(BadInput, match="Expected weights by the names of Sequential"):
        begun(FirstLayer()).craft(InterceptedUpdate(1, 0, "fedsgd", 0, "net", sent, {}))


WEIGHTS = {"a": torch.ones(2), "n": torch.tensor(1)}


@pytest.mark.parametrize(
    ("changes", "config", "text"),
    [
        ({"b": torch.ones(2)}, {}, "Expected the complete state of the model from s, got other"),
        ({"a": torch.ones(3)}, {}, r"Expected `a` as torch.float32 \(2,\) from s, got .* \(3,\)"),
        ({"a": torch.ones(2).double()}, {}, r"Expected `a` as torch.float32 .* got torch.float64"),
        ({"a": torch.tensor([1.0, torch.inf])}, {}, "Expected finite numbers in `a` from s"),
        ({}, {"lr": [1]}, "Expected a number or text as `lr` in the training configuration"),
    ],
)
def test_what_cannot_be_sent(
    changes: Mapping[str, torch.Tensor], config: dict[str, Any], text: str
) -> None:
    with pytest.raises(BadInput, match=text):
        check_crafted("s", Crafted(WEIGHTS | dict(changes), config), WEIGHTS)


READING = Reading(
    torch.zeros(2, *SHAPE), torch.zeros(2).long(), torch.zeros(2).bool(), torch.zeros(2, 0)
)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"inputs": torch.zeros(2, 4)}, r"Expected `inputs` of shape \(2, 1, 3, 3\) from s"),
        ({"labels": torch.zeros(3)}, r"Expected `labels` of shape \(2,\) from s, got \(3,\)"),
        ({"certified": torch.zeros(1)}, r"Expected `certified` of shape \(2,\)"),
        ({"features": torch.zeros(2)}, "Expected `features` with two dimensions from s, got 1"),
        ({"inputs": torch.full((2, *SHAPE), torch.nan)}, "Expected finite numbers in `inputs`"),
    ],
)
def test_a_reading_that_is_none(changes: dict[str, torch.Tensor], text: str) -> None:
    check_reading("s", READING, SHAPE)
    with pytest.raises(BadInput, match=text):
        check_reading("s", replace(READING, **changes), SHAPE)


def test_a_number_of_rounds_below_one() -> None:
    with pytest.raises(BadInput, match="Expected `rounds` of first_layer to be at least 1, got 0"):
        begun(FirstLayer(rounds=0))
