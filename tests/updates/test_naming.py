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
    assert list(found) == [name for name in PARAMETERS if name != "0.bias"]


def test_positions_as_names_are_those_of_the_state_dict() -> None:
    listed = {str(position): value for position, value in enumerate(SENT.values())}
    found = by_name(listed, "weights", PARAMETERS, SENT)
    assert list(found) == list(SENT)
    for name, value in SENT.items():
        assert torch.equal(found[name], value)
    check(by_name(dict(zip("0123", VALUES.values(), strict=True)), "gradient", PARAMETERS, SENT))
    swapped = listed | {"0": listed["1"], "1": listed["0"]}
    with pytest.raises(BadInput, match=r"`0.weight` of shape \(3, 2\) in the weights, got \(3,\)"):
        by_name(swapped, "weights", PARAMETERS, SENT)
    # Where the model's own names are numbers, these count.
    own = {"1": torch.ones(2), "0": torch.zeros(2)}
    assert torch.equal(by_name({"0": torch.zeros(2)}, "delta", ["1", "0"], own)["0"], own["0"])


def test_a_part_of_the_parameters_is_enough() -> None:
    part = {"0.bias": VALUES["0.bias"]}
    assert list(by_name(part, "gradient", PARAMETERS, SENT)) == ["0.bias"]


def test_a_list_of_the_trained_parameters() -> None:
    trained = ["1.weight", "1.bias"]
    listed = [VALUES[name] for name in trained]
    for kind in ("gradient", "weights", "delta"):
        found = by_name(listed, kind, PARAMETERS, SENT, trained)
        assert list(found) == trained
        assert all(torch.equal(found[name], VALUES[name]) for name in trained)
    check(by_name(list(VALUES.values()), "gradient", PARAMETERS, SENT, trained))
    sentence = "gradient of 4 parameters or of the 2 trained ones, got 1 tensors, of which tensor 0"
    with pytest.raises(BadInput, match=sentence):
        by_name(listed[:1], "gradient", PARAMETERS, SENT, trained)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (torch.zeros(3), "gradient as a mapping or a sequence of tensors, got Tensor"),
        (3, "gradient as a mapping or a sequence of tensors, got int"),
        ([torch.zeros(3)], "of 4 parameters, got 1 tensors, of which tensor 0 is not of `0.w"),
        (
            [VALUES[name] for name in PARAMETERS[:1] + PARAMETERS[2:]],
            "of 4 parameters, got 3 tensors, of which there is no tensor of `1.bias`: give them by",
        ),
        (
            list(SENT.values()),
            "gradient of 4 parameters, got 7 tensors, of which tensor 4 is of no parameter: give",
        ),
        (VALUES | {"0.bais": torch.zeros(3)}, "Unknown parameter in the gradient `0.bais`: .*bias"),
        (VALUES | {"0.bias": np.zeros(2)}, r"`0.bias` of shape \(3,\) in the gradient, got \(2,\)"),
        (VALUES | {"0.bias": "text"}, "a tensor for `0.bias`, got str"),
        ({"1.running_mean": SENT["1.running_mean"]}, "of the model's parameters, got none of them"),
        (dict.fromkeys(VALUES), "gradient of the model's parameters, got none of them"),
    ],
)
def test_what_does_not_fit(values: object, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        by_name(values, "gradient", PARAMETERS, SENT)
