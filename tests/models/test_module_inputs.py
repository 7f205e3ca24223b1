"""The input of a module's call, by position and by keyword."""

from typing import Any

import pytest
import torch
from torch import nn

from fedleak.models.module_inputs import module_input


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [((1, 2), {"a": 3}, 1), ((), {"input": 4, "other": 5}, 4), ((), {}, None)],
)
def test_first_argument(args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any) -> None:
    assert module_input(args, kwargs) == expected


@pytest.mark.parametrize("keyword", [False, True])
def test_input_that_a_hook_receives(keyword: bool) -> None:
    layer, value, seen = nn.Linear(2, 3), torch.ones(1, 2), []
    layer.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append(module_input(args, kwargs)), with_kwargs=True
    )
    _ = layer(input=value) if keyword else layer(value)
    assert seen[0] is value
