"""Gradients in any form, by the names of a model's parameters."""

import numpy as np
import pytest
import torch
from torch import nn

from fedleak.errors import BadInput
from fedleak.updates.naming import by_name

MODEL = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
PARAMETERS = [name for name, _ in MODEL.named_parameters()]
SENT = MODEL.state_dict()
VALUES = {name: torch.full_like(SENT[name], n) for n, name in enumerate(PARAMETERS)}


def check(found: dict[str, torch.Tensor | None]) -> None:
    assert list(found) == PARAMETERS
    for name, value in VALUES.items():
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_module."])
def test_prefixes_of_wrappers(prefix: str) -> None:
    check(by_name({prefix + n: v for n, v in VALUES.items()}, "gradient", PARAMETERS, SENT))


def test_sequences_and_arrays() -> None:
    check(by_name(list(VALUES.values()), "gradient", PARAMETERS, SENT))
    check(by_name(tuple(v.numpy() for v in VALUES.values()), "gradient", PARAMETERS, SENT))


def test_weights_may_include_buffers() -> None:
    found = by_name(list(SENT.values()), "weights", PARAMETERS, SENT)
    assert list(found) == list(SENT)


def test_a_wrapped_model_is_recognised_too() -> None:
    sent = {f"module.{name}": value for name, value in SENT.items()}
    names = [f"module.{name}" for name in PARAMETERS]
    assert list(by_name(VALUES, "gradient", names, sent)) == names


def test_values_are_copies_of_the_models_type() -> None:
    values = {name: value.double() for name, value in VALUES.items()}
    values["0.bias"] = SENT["0.bias"]
    found = by_name(values, "gradient", PARAMETERS, SENT)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert found["0.bias"].data_ptr() != SENT["0.bias"].data_ptr()


def test_none_stands_for_an_unused_parameter() -> None:
    found = by_name(VALUES | {"0.bias": None}, "gradient", PARAMETERS, SENT)
    assert list(found) == [name for name in VALUES if name != "0.bias"]


def test_a_part_of_the_parameters_is_enough() -> None:
    part = {"0.bias": VALUES["0.bias"]}
    assert list(by_name(part, "gradient", PARAMETERS, SENT)) == ["0.bias"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (torch.zeros(3), "gradient as a mapping or a sequence of tensors, got Tensor"),
        (3, "gradient as a mapping or a sequence of tensors, got int"),
        ([torch.zeros(3)], "gradient of 4 parameters, got 1 tensors"),
        (list(SENT.values()), "gradient of 4 parameters, got 7 tensors"),
        (VALUES | {"0.bais": torch.zeros(3)}, "Unknown parameter in the gradient `0.bais`: .*bias"),
        (VALUES | {"0.bias": np.zeros(2)}, r"`0.bias` of shape \(3,\) in the gradient, got \(2,\)"),
        (VALUES | {"0.bias": "text"}, "a tensor for `0.bias`, got str"),
        (dict.fromkeys(VALUES), "gradient of the model's parameters, got none of them"),
    ],
)
def test_what_does_not_fit(values: object, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        by_name(values, "gradient", PARAMETERS, SENT)
