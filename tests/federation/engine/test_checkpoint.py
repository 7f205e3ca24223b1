"""Checkpoints, and the refusal of those that are damaged or of another federation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.serverapp.strategy import FedAdam, FedAvg
from safetensors.torch import load_file, save_file

from fedleak.errors import BadInput
from fedleak.federation.engine.checkpoint import Outcome, read_outcome, restore, write_checkpoint
from tests.federation.fakes import same_tensors

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
OUTCOME = Outcome(2, 1, {0: {"accuracy": 0.25}, 2: {"accuracy": 0.5}})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "unfinished.safetensors"
    strategy = FedAdam()
    strategy.m_t = {"a": WEIGHTS["a"].numpy()}
    write_checkpoint(path, WEIGHTS, strategy, OUTCOME)
    return path


def changed(path: Path, **texts: Any) -> None:
    """Replace texts of the header."""
    header = {"outcome": {"rounds": 2, "failures": 1, "metrics": {}}, "strategy": {}} | texts
    plain = {name: value if isinstance(value, str) else json.dumps(value) for name, value in
             header.items() if value is not None}  # fmt: skip
    save_file(load_file(path), path, plain)


def test_weights_come_back_in_the_order_of_the_model(path: Path) -> None:
    swapped = {name: WEIGHTS[name] for name in ("b", "a")}
    strategy = FedAdam()
    found = restore(path, strategy, swapped)
    assert list(found) == ["b", "a"]
    assert same_tensors(found, swapped)
    assert strategy.m_t["a"].tolist() == WEIGHTS["a"].tolist()


@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_a_truncated_checkpoint(path: Path, content: bytes | None) -> None:
    path.write_bytes(path.read_bytes()[:100] if content is None else content)
    for read in (read_outcome, lambda path: restore(path, FedAvg())):
        with pytest.raises(BadInput, match=r"a complete safetensors file at .*unfinished"):
            read(path)


@pytest.mark.parametrize(
    "outcome",
    [
        None, "", "[]", "null", "[" * 100_000, {}, {"rounds": -1, "failures": 0, "metrics": {}},
        {"rounds": "2", "failures": 0, "metrics": {}}, {"rounds": True, "failures": 0,
        "metrics": {}}, {"rounds": 2, "failures": None, "metrics": {}},
        {"rounds": 2, "failures": 0, "metrics": []}, {"rounds": 2, "failures": 0,
        "metrics": {"one": {}}}, {"rounds": 2, "failures": 0, "metrics": {"1": {"a": "b"}}},
        {"rounds": 2, "failures": 0, "metrics": {"1": 3}},
        {"rounds": 2, "failures": 1, "metrics": {}, "lost": {"one": 1}},
        {"rounds": 2, "failures": 1, "metrics": {}, "lost": {"1": -1}},
        {"rounds": 2, "failures": 1, "metrics": {}, "lost": []},
        {"rounds": 2, "failures": 1, "metrics": {}, "diverged": "1"},
    ],
)  # fmt: skip
def test_invalid_results_in_a_checkpoint(path: Path, outcome: Any) -> None:
    changed(path, outcome=outcome)
    with pytest.raises(BadInput, match=r"the state of this federation in .* delete the file"):
        read_outcome(path)


def test_lost_and_diverged_rounds_are_kept(path: Path) -> None:
    outcome = Outcome(2, 3, {}, {1: 1, 2: 2}, 2)
    write_checkpoint(path, WEIGHTS, FedAdam(), outcome)
    assert read_outcome(path) == outcome
    assert Outcome(1, metrics={1: {"accuracy": float("nan")}}).accuracy is None


def test_more_rounds_than_the_federation_has(path: Path) -> None:
    assert read_outcome(path, 2) == OUTCOME
    with pytest.raises(BadInput, match=r"got another one .*2 rounds and 1 failures"):
        read_outcome(path, 1)


@pytest.mark.parametrize(
    "state",
    [
        None, "", "[" * 100_000, {"strategy/eta": "fast"}, {"strategy/eta": None},
        {"strategy/m_t": {"kind": "dict"}}, {"strategy/m_t": {"kind": "dict", "keys": 3}},
        {"strategy/m_t": {"kind": "dict", "keys": ["a", "c"]}},
        {"strategy/m_t": {"kind": "dict", "keys": [["a"]]}}, "[]",
    ],
)  # fmt: skip
def test_invalid_strategy_state_in_a_checkpoint(path: Path, state: Any) -> None:
    changed(path, strategy=state)
    with pytest.raises(BadInput, match=r"the state of this federation in .* delete the file"):
        restore(path, FedAdam())


@pytest.mark.parametrize(
    "weights",
    [
        {"a": WEIGHTS["a"]},
        WEIGHTS | {"c": torch.ones(1)},
        WEIGHTS | {"a": torch.ones(3, 2)},
    ],
)
def test_weights_of_another_model(path: Path, weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(BadInput, match="is missing, of another shape or unknown"):
        restore(path, FedAdam(), weights)


def test_without_a_checkpoint_no_round_is_done(tmp_path: Path) -> None:
    assert read_outcome(tmp_path / "none") == Outcome()
    assert Outcome().accuracy is None
    assert Outcome(1, 0, {1: {"val_acc": 0.5}}).accuracy == 0.5
