"""Changes of a model's output, made again with another number of samples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedleak.audit import torch_calls
from fedleak.audit.knowledge import changed_again
from fedleak.audit.torch_calls import change_of, is_lightning, plain, size_of, tensors_in

KNOWN: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
    "view": (Tensor.view, (-1, 6), {}, (2, 3)),
    "view of a number": (Tensor.view, (4, 6), {}, (2, 3)),
    "tokens in a row": (Tensor.reshape, (-1, 3), {}, (2, 3)),
    "flatten": (torch.flatten, (1,), {}, (2, 3)),
    "squeeze": (Tensor.squeeze, (), {}, (1,)),
    "squeeze one": (torch.squeeze, (1,), {}, (1, 3)),
    "unsqueeze": (Tensor.unsqueeze, (1,), {}, (3,)),
    "transpose": (Tensor.transpose, (1, 2), {}, (2, 3)),
    "permute": (Tensor.permute, (2, 0, 1), {}, (2, 3)),
    "movedim": (torch.movedim, (1, -1), {}, (2, 3)),
    "log_softmax": (F.log_softmax, (), {"dim": 1}, (5,)),
    "softmax": (Tensor.softmax, (-1,), {}, (5,)),
    "sigmoid": (torch.sigmoid, (), {}, (1,)),
    "double": (Tensor.double, (), {}, (2,)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_change_is_made_again_with_other_samples(name: str) -> None:
    function, args, kwargs, shape = KNOWN[name]
    first, second = torch.randn(4, *shape), torch.randn(7, *shape)
    result = function(first, *args, **kwargs)
    change = change_of(function, (first, *args), kwargs, result, 4)
    assert change
    # A batch size that the code names is that of each batch.
    own = tuple(7 if arg == 4 else arg for arg in args)
    expected = function(second, *own, **kwargs)
    assert torch.equal(changed_again(second, change), expected)
    assert changed_again(second, change).dtype == expected.dtype


@pytest.mark.parametrize(
    ("function", "args", "shape"),
    [
        # Of one sample, a squeeze may or may not have removed the batch dimension.
        (Tensor.squeeze, (), (1, 5)),
        # Samples are mixed.
        (Tensor.reshape, (3, 8), (4, 6)),
        (F.log_softmax, (1, 3, torch.float64), (4, 6)),
        (Tensor.reshape, (), (1,)),
    ],
)
def test_what_cannot_be_made_again_is_none(
    function: Callable[..., Tensor], args: tuple[Any, ...], shape: tuple[int, ...]
) -> None:
    value = torch.randn(shape)
    result = torch.tensor(1.0) if not args and shape == (1,) else function(value, *args)
    assert change_of(function, (value, *args), {}, result, shape[0]) is None


def test_what_has_no_effect_is_no_change() -> None:
    value = torch.randn(4, 3)
    assert change_of(Tensor.view, (value, 4, 3), {}, value.view(4, 3), 4) == {}


@dataclass
class Output:
    loss: Tensor
    more: dict[str, list[Any]]


def test_tensors_are_found_where_they_are() -> None:
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    value = ((a, {"x": [b, "text"]}), Output(c, {"y": [None, a]}))
    assert {place: id(tensor) for place, tensor in tensors_in(value).items()} == {
        (0, 0): id(a), (0, 1, "x", 0): id(b), (1, "loss"): id(c), (1, "more", "y", 1): id(a),
    }  # fmt: skip
    nested: Any = a
    for _ in range(10):
        nested = [nested]
    assert tensors_in(nested) == {}


def test_settings_become_plain() -> None:
    assert plain((1, 0.5, True, None, "a", torch.tensor(2.0))) == [1, 0.5, True, None, "a", 2.0]
    assert plain(torch.tensor([1, 2])) == {"tensor": [1, 2], "dtype": "int64"}
    assert plain({1}) == "{1}"


def test_a_sparse_gradient_has_a_size() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1, 1, 3])).sum().backward()
    assert table.weight.grad is not None
    dense = table.weight.grad.to_dense()
    assert torch.equal(size_of(table.weight.grad), size_of(dense))
    assert len(torch_calls.identity_of(table.weight.grad)) == 3


def test_a_gradient_of_the_other_sign_is_another_one() -> None:
    gradient = torch.tensor([[0.5, -1.5], [2.0, 0.25]])
    assert not torch.equal(size_of(gradient), size_of(-gradient))


def test_a_lightning_module_is_known_by_its_class() -> None:
    assert is_lightning(pl.LightningModule())
    assert not is_lightning(nn.Linear(1, 1))
    # As of the package `lightning`.
    kind = type("LightningModule", (nn.Module,), {"__module__": "lightning.pytorch.core.module"})
    assert is_lightning(type("Own", (kind,), {})())
