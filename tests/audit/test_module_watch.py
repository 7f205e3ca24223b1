import threading

import pytest
import torch
from torch import nn

from fedleak.audit.module_watch import fit, state_of, watched_modules


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_modules_whose_weights_are_taken_or_set_are_seen() -> None:
    before = nn.Module.state_dict, nn.Module.load_state_dict
    model, other, unseen = small(), small(), small()
    with watched_modules() as watched:
        state = model.state_dict()
        other.load_state_dict(state)
        model.state_dict()
        thread = threading.Thread(target=unseen.state_dict)
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError, match="Missing key"):
            other.load_state_dict({})
    assert (nn.Module.state_dict, nn.Module.load_state_dict) == before
    # The parts, whose state is taken with theirs, do not count.
    assert watched.found == [(model, "state_dict"), (other, "load_state_dict")]
    assert watched.modules("load_state_dict") == [other]
    unseen.state_dict()
    assert watched.modules() == [model, other]


def test_what_fails_within_leaves_nothing_behind() -> None:
    before = nn.Module.state_dict
    with pytest.raises(ZeroDivisionError), watched_modules():
        _ = 1 / 0
    assert nn.Module.state_dict is before


def test_a_server_that_makes_a_model_in_each_round_is_seen_once() -> None:
    with watched_modules(once_per_kind=True) as watched:
        for _ in range(3):
            small().state_dict()
        nn.Sequential(nn.Linear(4, 3)).state_dict()
    assert len(watched.found) == 2


def test_the_order_of_a_state_is_that_of_torch() -> None:
    """With shared tensors, buffers that are not kept, and parameters that are none."""
    model = nn.Sequential(small(), nn.Linear(3, 3, bias=False))
    model.extra = model[1]
    model[1].register_buffer("hidden", torch.ones(2), persistent=False)
    model[1].register_buffer("shown", torch.ones(2, dtype=torch.int64))
    expected = [
        (n, tuple(v.shape), str(v.dtype).partition(".")[2]) for n, v in model.state_dict().items()
    ]
    assert list(state_of(model)) == expected


def test_how_arrays_fit_a_state() -> None:
    model = small()
    whole = [(name, shape) for name, shape, _ in state_of(model)]
    listed = [(str(at), shape) for at, (_, shape) in enumerate(whole)]
    for sent, expected in (
        (whole, 3),
        (whole[:2], 2),
        (listed, 3),
        ([(name, ()) for name, _ in listed], 3),
        (listed[:-1], 0),
        (listed[:4], 2),  # the parameters without the buffers
        ([(str(at), (9,)) for at in range(len(whole))], 0),
        ([(f"module.{name}", shape) for name, shape in whole], 1),
        ([("0.weight", (3, 3))], 0),
        ([("nowhere", (3, 2))], 0),
        ([], 0),
    ):
        assert fit(model, sent) == expected
