"""Gradients on the way: what comes back is what went in, in less room."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedleak.updates.compression import CompactTensors, encode, weighted_sum


def gradients(seed: int, *, dense: bool = True) -> dict[str, Tensor]:
    """A product of two vectors, a matrix mostly of zeros, a whole one, a bias and a number."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    sparse = normal(6, 9) * (torch.rand(6, 9, generator=random) < 0.2)
    found = {"product": torch.outer(normal(7), normal(5)), "sparse": sparse, "bias": normal(4)}
    return found | ({"a/b.whole": normal(3, 2, 2), "number": normal()} if dense else {})


def factors(value: Tensor) -> tuple[Tensor, Tensor]:
    """Two vectors whose product is this matrix to rounding, or is not."""
    return value[:, 0].clone(), value[0] / value[0, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_nothing_is_lost(seed: int) -> None:
    before = gradients(seed)
    after = CompactTensors(encode(before, {"product": factors(before["product"])}))
    assert list(after) == list(before)
    assert len(after) == len(before)
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert torch.equal(after[name], value), name


def test_factors_that_are_right_are_all_that_is_sent() -> None:
    rows, columns = torch.randn(50), torch.randn(40)
    encoded = encode({"w.weight": torch.outer(rows, columns)}, {"w.weight": (rows, columns)})
    assert sum(value.numel() for value in encoded.values()) == 90


def test_factors_that_are_wrong_are_not_believed() -> None:
    value = torch.outer(torch.randn(5), torch.randn(4))
    encoded = encode({"w": value}, {"w": (torch.ones(5), torch.ones(4))})
    assert list(encoded) == ["w"]


def test_zeros_take_no_room() -> None:
    value = torch.zeros(100, 100)
    value[3, 4] = 2.0
    encoded = encode({"w": value, "none": torch.zeros(8)})
    assert sum(item.numel() for item in encoded.values()) < 10
    assert torch.equal(CompactTensors(encoded)["w"], value)
    assert torch.equal(CompactTensors(encoded)["none"], torch.zeros(8))


def test_no_such_tensor() -> None:
    with pytest.raises(KeyError, match="weight"):
        CompactTensors(encode(gradients(0)))["weight"]
    assert "weight" not in CompactTensors(encode(gradients(0)))


@pytest.mark.parametrize("mixed", [False, True])
def test_the_weighted_sum_is_that_of_the_whole_tensors(mixed: bool) -> None:
    parts = [gradients(seed) for seed in range(4)]
    weights = [0.1, 0.4, 0.3, 0.2]
    given = [
        CompactTensors(part if mixed and n % 2 else encode(part, {
            "product": (part["product"][:, 0], part["product"][0] / part["product"][0, 0])
        }))
        for n, part in enumerate(parts)
    ]  # fmt: skip
    found = weighted_sum(given, weights)
    for name in parts[0]:
        expected = sum(w * part[name].double() for w, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-6)
