"""Files of what a malicious server sent and read, whole and damaged."""

from pathlib import Path

import pytest
import torch

from fedleak.errors import BadInput
from fedleak.servers import Crafted, Reading
from fedleak.servers.files import (
    READING_FORMAT,
    SENT_FORMAT,
    load_crafted,
    load_reading,
    reading_facts,
    save_crafted,
    save_reading,
)
from fedleak.updates.files import write_tensors


def reading(found: int = 2) -> Reading:
    return Reading(
        torch.rand(found, 1, 4, 4), torch.arange(found) - 1, torch.arange(found) > 0,
        torch.rand(found, 5), ("one", "two"),
    )  # fmt: skip


def test_what_was_sent_comes_back(tmp_path: Path) -> None:
    weights = {"a/b": torch.rand(2, 3), "n": torch.tensor(7)}
    config = {"lr": 1e-12, "epochs": 2, "name": "x", "flag": True}
    save_crafted(Crafted(weights, config, {"a/b": torch.zeros(1)}), tmp_path / "x.st", "bins")
    found = load_crafted(tmp_path / "x.st")
    assert found.config == config
    assert {n: v.tolist() for n, v in found.weights.items()} == {
        n: v.tolist() for n, v in weights.items()
    }
    assert found.memory["a/b"].tolist() == [0.0]


@pytest.mark.parametrize("found", [0, 3])
def test_what_was_read_comes_back(found: int, tmp_path: Path) -> None:
    original, path = reading(found), tmp_path / "x.st"
    save_reading(original, path, "bins", {"client": 3})
    back = load_reading(path)
    for part in ("inputs", "labels", "certified", "features"):
        assert torch.equal(getattr(back, part), getattr(original, part))
    assert back.findings == ("one", "two")
    assert reading_facts(path) == {"client": 3, "server": "bins"}


@pytest.mark.parametrize(
    ("tensors", "config", "text"),
    [
        ({"weights/a": torch.rand(1)}, "no", "Expected JSON as `config`"),
        ({"weights/a": torch.rand(1)}, "[1]", "Expected numbers and texts by name in `config`"),
        ({"weights/a": torch.rand(1)}, '{"a": [1]}', "Expected numbers and texts by name"),
        ({"a": torch.rand(1)}, "{}", "Expected weights and memory in .*, got 'a'"),
        ({"weights/": torch.rand(1)}, "{}", "Expected weights and memory"),
    ],
)
def test_damaged_files_of_what_was_sent(
    tensors: dict[str, torch.Tensor], config: str, text: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(tensors, path, {"format": SENT_FORMAT, "config": config})
    with pytest.raises(BadInput, match=text):
        load_crafted(path)


def test_damaged_files_of_readings(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    parts = {name: getattr(reading(), name) for name in ("inputs", "labels", "certified")}
    header = {"format": READING_FORMAT, "findings": "[]", "facts": "{}"}
    write_tensors(parts, path, header)
    with pytest.raises(BadInput, match="Expected inputs, labels, certified, features of as many"):
        load_reading(path)
    parts["features"] = torch.rand(3, 1)
    write_tensors(parts, path, header)
    with pytest.raises(BadInput, match="of as many samples each"):
        load_reading(path)
    parts["features"] = torch.rand(2, 1)
    write_tensors(parts, path, header | {"findings": "[1]", "facts": "[]"})
    with pytest.raises(BadInput, match="Expected sentences in `findings`"):
        load_reading(path)
    with pytest.raises(BadInput, match="Expected `facts` by name"):
        reading_facts(path)
    with pytest.raises(BadInput, match="Expected a file of format fedleak-sent-1"):
        load_crafted(path)
