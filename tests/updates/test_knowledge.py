"""The server's prior knowledge."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedleak.errors import BadInput
from fedleak.updates.knowledge import Knowledge, batch_loss
from fedleak.updates.local_training import LocalTraining


def test_bounds_are_pixel_0_and_pixel_1() -> None:
    knowledge = Knowledge(nn.Identity(), (3, 4, 5), 2, mean=(0.5, 0.2, 0.0), std=(0.25, 0.1, 1.0))
    low, high = knowledge.bounds
    assert low.shape == high.shape == (3, 1, 1)
    torch.testing.assert_close(low.flatten(), torch.tensor([-2.0, -2.0, 0.0]))
    torch.testing.assert_close(high.flatten(), torch.tensor([2.0, 8.0, 1.0]))


def test_bounds_by_default_and_of_vectors() -> None:
    low, high = Knowledge(nn.Identity(), (3, 4, 5), 2).bounds
    assert (low.tolist(), high.tolist()) == ([[[0.0]]], [[[1.0]]])
    low, high = Knowledge(nn.Identity(), (7,), 2, mean=(0.5,), std=(0.5,)).bounds
    assert (low.tolist(), high.tolist()) == ([-math.inf], [math.inf])


def test_bounds_of_single_entries() -> None:
    limits = torch.tensor([-1.0, -math.inf]), torch.tensor([7.0, 4.0])
    facts = Knowledge(nn.Identity(), (2,), mean=(1.0, 3.0), std=(2.0, 4.0), value_range=limits)
    low, high = facts.bounds
    assert (low.tolist(), high.tolist()) == ([-1.0, -math.inf], [3.0, 0.25])
    one = Knowledge(nn.Identity(), (2,), value_range=(0.0, limits[1]))
    assert [bound.tolist() for bound in one.bounds] == [[0.0, 0.0], [7.0, 4.0]]


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ((torch.zeros(2), torch.ones(3)), r"two tensors of the shape \(2,\) of a sample, got"),
        ((torch.zeros(2), torch.tensor([1.0, 0.0])), "lowest and the highest value as"),
        ((torch.zeros(2), torch.tensor([1.0, math.nan])), "lowest and the highest value as"),
        (("a", "b"), "to be the lowest and the highest value, two numbers or two tensors, got"),
        ((0.0,), "two numbers or two tensors, got"),
    ],
)
def test_limits_of_entries_that_are_none(told: Any, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        Knowledge(nn.Identity(), (2,), value_range=told)


def test_bounds_that_are_told() -> None:
    facts = Knowledge(nn.Identity(), (2,), mean=(1.0, 3.0), std=(2.0, 4.0), value_range=(-1, 7))
    low, high = facts.bounds
    assert (low.tolist(), high.tolist()) == ([-1.0, -1.0], [3.0, 1.0])
    low, high = Knowledge(nn.Identity(), (2,), value_range=(0, math.inf)).bounds
    assert (low.tolist(), high.tolist()) == ([0.0], [math.inf])


@pytest.mark.parametrize(
    ("shape", "told"), [((2,), (1.0, 1.0)), ((2,), (2.0, 1.0)), ((3, 4, 4), (0.0, math.inf))]
)
def test_a_range_that_is_none(shape: tuple[int, ...], told: tuple[float, float]) -> None:
    with pytest.raises(BadInput, match="lowest and the highest value as `value_range`, finite"):
        Knowledge(nn.Identity(), shape, value_range=told)


def test_dummy_labels_are_of_the_kind_that_is_known() -> None:
    facts = Knowledge(nn.Identity(), (2,))
    assert torch.equal(facts.dummy_labels(3), torch.zeros(3, dtype=torch.long))
    known = replace(facts, labels=torch.tensor([[0.5, 1.0], [2.0, 3.0]]))
    assert known.dummy_labels(2).tolist() == [[0.5, 1.0], [2.0, 3.0]]
    assert known.dummy_labels(3).tolist() == [[0.5, 1.0]] * 3
    alike = replace(facts, label_example=torch.zeros(1, 4))
    assert (alike.dummy_labels(3).shape, alike.dummy_labels(3).dtype) == ((3, 4), torch.float32)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_samples", -1), ("local_steps", 0), ("local_steps", -1), ("batch_size", 0)],
)
def test_numbers_of_knowledge_are_checked(name: str, value: int) -> None:
    own = name.removeprefix("local_")
    with pytest.raises(BadInput, match=f"`{own}` to be at least 1, got {value}"):
        Knowledge(torch.nn.Linear(1, 1), (1, 6, 6), 3, **{name: value})


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"clients": 0}, "`clients` to be a number of clients from 1, or .* of each, got 0"),
        ({"clients": -2}, "from 1, .* got -2"),
        ({"clients": True}, "from 1, .* got True"),
        ({"clients": 1.5}, "from 1, .* got 1.5"),
        ({"clients": ()}, r"from 1, .* got \(\)"),
        ({"clients": (2, 0)}, r"from 1, .* got \(2, 0\)"),
        ({"clients": 4}, "a multiple of `clients` 4, or `clients` to be the .*, got 6"),
        ({"clients": (2, 3)}, r"all clients together, 5 by `clients` \[2, 3\], got 6"),
        ({"clients": 2, "aggregation": "max"}, "Unknown aggregation `max`: .* mean, sum, weighted"),
    ],
)
def test_clients_are_checked(told: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        Knowledge(nn.Identity(), (1, 6, 6), 3, num_samples=6, **told)


def test_each_client_has_its_own_samples_and_steps() -> None:
    facts = Knowledge(
        nn.Identity(), (2,), labels=[0, 1, 2, 3, 4, 5], protocol="fedavg", clients=[3, 1, 2],
        local_training=LocalTraining(learning_rate=0.1, batch_size=2, epochs=3),
    )  # fmt: skip
    assert (facts.num_samples, facts.number_of_clients) == (6, 3)
    first, second, third = facts.by_client
    assert [first.batches, second.batches, third.batches] == [
        (slice(0, 2), slice(2, 3)), (slice(3, 4),), (slice(4, 6),)
    ]  # fmt: skip
    assert [first.steps, second.steps, third.steps] == [6, 3, 3]
    assert third.knowledge.labels is not None
    assert third.knowledge.labels.tolist() == [4, 5]
    assert [first.weight, second.weight, third.weight] == pytest.approx([1 / 2, 1 / 6, 1 / 3])
    assert (facts.steps, facts.total_steps, facts.mean_steps) == (6, 12, pytest.approx(4.5))
    even = replace(facts, aggregation="mean")
    assert even.by_client[0].weight == pytest.approx(1 / 3)
    assert replace(even, protocol="fedsgd").steps == 1


def test_labels_may_be_a_list() -> None:
    facts = Knowledge(torch.nn.Linear(1, 1), (1, 6, 6), 3, labels=[2, 0])
    assert isinstance(facts.labels, torch.Tensor)
    assert facts.labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("batch_size", "samples", "steps"),
    [(8, 8, 4), (8, 16, 8), (8, 24, 12), (8, 5, 4), (None, 16, 4)],
)
def test_knowledge_of_another_client(batch_size: int | None, samples: int, steps: int) -> None:
    """A federation of four epochs: who has more samples takes more steps."""
    facts = Knowledge(
        torch.nn.Linear(1, 1), (1, 6, 6), 3, num_samples=8, local_steps=4, batch_size=batch_size
    )
    found = facts.of_samples(samples)
    assert (found.num_samples, found.local_steps) == (samples, steps)


def test_steps_that_are_no_whole_epochs_stay_what_they_are() -> None:
    facts = Knowledge(
        torch.nn.Linear(1, 1), (1, 6, 6), 3, num_samples=32, local_steps=1, batch_size=8
    )
    assert facts.of_samples(64).local_steps == 1


class WithoutIndex(nn.Linear):
    """A training step that takes the batch alone, as Lightning allows."""

    def training_step(self, batch: Any) -> Tensor:
        return self(batch[0]).square().mean()


class WithAny(nn.Linear):
    """A training step that takes whatever it is given."""

    def training_step(self, *arguments: Any) -> Tensor:
        batch, index = arguments
        return self(batch[0]).square().mean() + index


@pytest.mark.parametrize("kind", [WithoutIndex, WithAny])
def test_a_training_step_need_not_take_an_index(kind: type[nn.Linear]) -> None:
    model, inputs = kind(3, 2), torch.ones(1, 3)
    assert torch.equal(batch_loss(model, (inputs, None)), model(inputs).square().mean())
