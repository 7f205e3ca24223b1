"""Blocks, against whole tensors in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedleak.updates import blocks as module
from fedleak.updates.blocks import blocks, inner_product, row_blocks


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda value: value,
    "turned": lambda value: value.t().contiguous().t(),
    "half precision": lambda value: value.bfloat16(),
    "float64": lambda value: value.double(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_blocks_together_are_the_tensors(
    form: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", size)
    one, other = FORMS[form](drawn(6, 5)), drawn(30, seed=1)
    parts = list(blocks(one, other))
    assert all(len(a) == len(b) <= size and a.dtype == torch.float64 for a, b in parts)
    assert torch.equal(torch.cat([a for a, _ in parts]), one.double().flatten())
    assert torch.equal(torch.cat([b for _, b in parts]), other.double())
    rows = list(row_blocks(one))
    assert torch.equal(torch.cat([part for (part,) in rows]), one.double())
    assert all(len(part) == 1 or part.numel() <= size for (part,) in rows)


def test_nothing_has_no_blocks() -> None:
    assert list(blocks(torch.zeros(0))) == []
    assert list(row_blocks(torch.zeros(0, 3))) == []
    assert inner_product(torch.zeros(0), torch.zeros(0)) == 0


def test_an_inner_product_is_summed_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 64)
    one, other = drawn(1000), drawn(1000, seed=1)
    assert inner_product(one, other) == pytest.approx(
        float(one.double() @ other.double()), rel=1e-13
    )
    big = torch.full((1000,), 1e30)
    assert inner_product(big, big) == pytest.approx(1e63, rel=1e-6)
