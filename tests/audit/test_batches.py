from pathlib import Path

import pytest
import torch

from fedleak.audit.batches import Batch, load_batches, save_batches
from fedleak.errors import BadInput
from fedleak.updates.files import write_tensors


def test_batches_come_back_as_they_were(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(3, 2)
    batches = [
        Batch({(0,): shared, ("a b", 1, "targets"): shared[:2]}, torch.tensor([1, 2, 3])),
        Batch({(): torch.ones(1, dtype=torch.bool)}),
    ]
    save_batches(batches, tmp_path / "x.safetensors")
    found = load_batches(tmp_path / "x.safetensors")
    assert len(found) == 2
    for left, right in zip(batches, found, strict=True):
        assert left.inputs.keys() == right.inputs.keys()
        assert all(torch.equal(value, right.inputs[place]) for place, value in left.inputs.items())
        assert (left.targets is None) == (right.targets is None)
    assert torch.equal(found[0].targets, torch.tensor([1, 2, 3]))  # type: ignore[arg-type]
    save_batches([], tmp_path / "none.safetensors")
    assert load_batches(tmp_path / "none.safetensors") == []
    assert "3." not in repr(batches[0])


@pytest.mark.parametrize("name", ["[0]", "0 [", "7 [0]", "x targets", '0 {"a": 1}'])
def test_another_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors({name: torch.ones(1)}, path, {"format": "fedleak-batches-1", "batches": "1"})
    with pytest.raises(BadInput, match="Expected a tensor of a batch in"):
        load_batches(path)
    write_tensors({}, path, {"format": "fedleak-batches-1", "batches": "many"})
    with pytest.raises(BadInput, match="Expected the number of batches in"):
        load_batches(path)
    write_tensors({}, path, {"format": "fedleak-truth-1"})
    with pytest.raises(BadInput, match="format fedleak-batches-1"):
        load_batches(path)
