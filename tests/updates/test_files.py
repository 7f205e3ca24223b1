import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedleak.attacks import DLG, IGA, NRA
from fedleak.errors import BadInput
from fedleak.registry import KINDS, names
from fedleak.updates import files
from fedleak.updates.files import (
    HEADER,
    LARGEST,
    check_name,
    read_tensors,
    update_files,
    update_key,
    write_tensors,
)

FORMAT = {"format": "x"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.safetensors"


def test_every_name_of_ours_is_a_name() -> None:
    found = [name for kind in KINDS for name in names(kind)]
    found += [attack.name for attack in (IGA, NRA, DLG)]
    found += ["smlp+precode", "lenet+cvb", "my-net", "my_net.v2", "Netz für Äpfel (2)", "a=0,b=1"]
    assert [check_name("it", name) for name in found] == found


@pytest.mark.parametrize(
    "name",
    ["", "..", "../../x", "/x", "a/b", "a\\b", "a\nb", "a\0b", "-x", " x", "x" * 101, "é" * 51,
     "a:b", "a|b", "<i>", "\ud800"],
)  # fmt: skip
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(BadInput, match="Expected the name of the model to consist of") as caught:
        check_name("the model", name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind",
    [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64,
     torch.complex64],
)  # fmt: skip
def test_types_that_nothing_of_ours_has(path: Path, kind: torch.dtype) -> None:
    save_file({"w": torch.ones(2).to(kind)}, path, FORMAT)
    with pytest.raises(BadInput, match=r"Expected tensors of the types BF16, .* in .*, got .*'w'"):
        read_tensors(path, "x")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.int8, torch.bool])
def test_types_of_models(path: Path, kind: torch.dtype) -> None:
    value = torch.tensor([0, 1]).to(kind)
    write_tensors({"w": value}, path, FORMAT)
    assert torch.equal(read_tensors(path, "x")[0]["w"], value)


def too_large(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(LARGEST + HEADER + 1)  # takes no room on the disk


def long_header(path: Path) -> None:
    text = b"{" + b" " * HEADER
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def header_beyond_the_end(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")


def gigabytes_that_are_not_there(path: Path) -> None:
    text = b'{"w":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4294967296]}}'
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (too_large, "at most 4,294,967,296 bytes of tensors in .*, got a file of 4,299,161,601"),
        (long_header, "a header of at most 4,194,304 bytes in .*, got one of 4,194,305"),
        (header_beyond_the_end, "a complete safetensors file at"),
        (gigabytes_that_are_not_there, "a complete safetensors file at"),
    ],
)
def test_sizes(path: Path, damage: Callable[[Path], None], sentence: str) -> None:
    write_tensors({"w": torch.ones(4)}, path, FORMAT)
    damage(path)
    with pytest.raises(BadInput, match=f"Expected {sentence}"):
        read_tensors(path, "x")


def test_errors_of_torch_are_told_in_a_line(path: Path) -> None:
    text = b'{"w":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}'
    text = text[:-1] + b',"__metadata__":{"format":"x"}}'
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(BadInput, match="complete safetensors file at") as caught:
        read_tensors(path, "x")
    assert "\n" not in str(caught.value)


def test_only_our_own_files_are_updates(tmp_path: Path) -> None:
    for name in ("r\u0663\u0663\u0663\u0663-c0001", "r0001-c9999999999", "r0001-c1"):
        (tmp_path / f"{name}.safetensors").touch()
    assert files.update_files(tmp_path) == []


def test_update_files_in_the_order_of_rounds_and_clients(tmp_path: Path) -> None:
    keys = [(1, 2), (1, 10), (1, 9999), (1, 10000), (2, 0), (10, 0), (9999, 1), (10000, 1)]
    for key in reversed(keys):
        (tmp_path / f"{update_key(*key)}.safetensors").touch()
    for other in ("r0001-global.safetensors", "r0001-c0001.part", "config.yaml",
                  "rest-copy.safetensors"):  # fmt: skip
        (tmp_path / other).touch()
    assert [path.stem for path in update_files(tmp_path)] == [update_key(*key) for key in keys]
    assert update_files(tmp_path / "none") == []
