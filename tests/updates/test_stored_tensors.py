"""Tensors that stay in their file: the same numbers, read when they are used."""

import pickle
from pathlib import Path

import pytest
import torch

from fedleak.errors import BadInput
from fedleak.updates.files import GLOBAL_FORMAT, UPDATE_FORMAT, write_tensors
from fedleak.updates.stored_tensors import StoredTensors


def stored(path: Path, names: tuple[str, ...] = ("a", "b")) -> StoredTensors:
    tensors = {name: torch.full((2, 3), float(at)) for at, name in enumerate(names)}
    write_tensors(tensors, path, {"format": UPDATE_FORMAT})
    return StoredTensors(path, UPDATE_FORMAT)


def test_tensors_are_read_when_they_are_used(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    found = stored(path)
    assert (list(found), len(found), "a" in found, "c" in found) == (["a", "b"], 2, True, False)
    assert torch.equal(found["b"], torch.ones(2, 3))
    write_tensors({"a": torch.zeros(1), "b": torch.full((2, 3), 7.0)}, path, {})
    assert torch.equal(found["b"], torch.full((2, 3), 7.0))
    path.unlink()
    with pytest.raises(BadInput, match="Expected a file at"):
        found["a"]
    with pytest.raises(KeyError):
        found["c"]


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stored(path)
    with pytest.raises(BadInput, match="Expected a file of format fedleak-global-1"):
        StoredTensors(path, GLOBAL_FORMAT)


def test_lists_keep_their_order(tmp_path: Path) -> None:
    names = tuple(str(number) for number in range(12))
    assert list(stored(tmp_path / "x.safetensors", names)) == list(names)


def test_other_names_shapes_and_types(tmp_path: Path) -> None:
    like = {"one": torch.zeros(3, 2, dtype=torch.float64), "two": torch.zeros(6)}
    found = stored(tmp_path / "x.safetensors").renamed({"b": "one", "c": "two"}, like)
    assert list(found) == ["one"]
    assert torch.equal(found["one"], torch.ones(3, 2, dtype=torch.float64))


def test_a_pickle_needs_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    data = pickle.dumps(stored(path))
    path.unlink()
    found = pickle.loads(data)
    assert torch.equal(found["b"], torch.ones(2, 3))
