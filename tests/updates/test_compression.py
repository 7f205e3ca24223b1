"""Gradients on the way: what comes back is what went in, in less room."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedleak.errors import BadInput
from fedleak.updates.compression import CompactTensors, check_encoded, encode, weighted_sum


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


def test_what_encode_gives_is_accepted_and_its_shapes_are_known() -> None:
    before = gradients(0)
    encoded = encode(before, {"product": factors(before["product"])})
    check_encoded(encoded, Path("file"))
    after = CompactTensors(encoded)
    assert {n: after.shape(n) for n in after} == {n: tuple(v.shape) for n, v in before.items()}
    with pytest.raises(KeyError, match="weight"):
        after.shape("weight")


def sparse(**changes: Tensor) -> dict[str, Tensor]:
    parts = {
        "indices": torch.tensor([1, 4], dtype=torch.int32), "values": torch.ones(2),
        "shape": torch.tensor([2, 3]),
    }  # fmt: skip
    return {f"w..{name}": value for name, value in (parts | changes).items()}


@pytest.mark.parametrize(
    "encoded",
    [
        sparse(indices=torch.tensor([-1, 4])),
        sparse(indices=torch.tensor([1, 6])),
        sparse(indices=torch.tensor([4, 1])),
        sparse(indices=torch.tensor([1, 1])),
        sparse(indices=torch.tensor([1.0, 4.0])),
        sparse(indices=torch.tensor([1])),
        sparse(indices=torch.tensor([[1, 4]])),
        sparse(shape=torch.tensor([-2, -3])),
        sparse(shape=torch.tensor([0, 2**62])),
        sparse(shape=torch.tensor([2.0, 3.0])),
        sparse(shape=torch.tensor([], dtype=torch.int64)),
        sparse(shape=torch.tensor([1] * 65)),
        {"w..rows": torch.ones(2, 2), "w..columns": torch.ones(2)},
        {"w..rows": torch.ones(2), "w..columns": torch.ones(2, dtype=torch.float64)},
    ],
)
def test_parts_that_do_not_fit_together(encoded: dict[str, Tensor]) -> None:
    with pytest.raises(BadInput, match="Expected the parts of 'w' in file to fit together, got"):
        check_encoded(encoded, Path("file"))


@pytest.mark.parametrize("missing", ["indices", "values", "shape", "rows", "columns"])
def test_parts_that_are_missing(missing: str) -> None:
    encoded = sparse() | {"v..rows": torch.ones(2), "v..columns": torch.ones(3)}
    name = next(name for name in encoded if name.endswith(missing))
    with pytest.raises(BadInput, match=rf"Expected a whole tensor, rows .* of '{name[0]}' in file"):
        check_encoded({n: v for n, v in encoded.items() if n != name}, Path("file"))
    with pytest.raises(BadInput, match=r"indices, values and shape of 'w' in file, got \['..odd'"):
        check_encoded({"w..odd": torch.ones(1)}, Path("file"))


@pytest.mark.parametrize(
    "encoded",
    [
        sparse(shape=torch.tensor([2**40])),
        sparse(shape=torch.tensor([2**32, 2**32])),
        {"w..rows": torch.ones(2**15 + 1), "w..columns": torch.ones(2**15)},
        {f"{n}..{part}": torch.ones(2**15) for n in "abc" for part in ("rows", "columns")},
    ],
)
def test_a_small_file_for_gigabytes(encoded: dict[str, Tensor]) -> None:
    """4 GiB are 2**30 numbers, in one tensor or in several."""
    with pytest.raises(BadInput, match="a gradient of at most 4,294,967,296 bytes in file"):
        check_encoded(encoded, Path("file"))
