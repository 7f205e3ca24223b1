"""The server's prior knowledge."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedleak.errors import BadInput
from fedleak.updates.knowledge import Knowledge


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
