"""The files in which updates, weights and truth travel: safetensors with a header."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedleak.errors import BadInput, require

Tensors = dict[str, Tensor]
UPDATE_FORMAT = "fedleak-update-1"
GLOBAL_FORMAT = "fedleak-global-1"
TRUTH_FORMAT = "fedleak-truth-1"
KEY = re.compile(r"r(\d{4,})-c(\d{4,})")


def update_key(round_: int, client: int) -> str:
    """The name of the files of one client's update in one round, such as ``r0001-c0003``."""
    return f"r{round_:04d}-c{client:04d}"


def update_files(folder: Path) -> list[Path]:
    """The update files in a folder, in the order of rounds and clients."""
    found = {}
    for path in folder.glob("r*-c*.safetensors"):
        if match := KEY.fullmatch(path.stem):
            found[int(match[1]), int(match[2])] = path
    return [found[key] for key in sorted(found)]


def write_tensors(tensors: Mapping[str, Tensor], path: Path, header: dict[str, str]) -> None:
    """Write tensors and a header to a safetensors file, which is whole or not there.

    Args:
        tensors: by name.
        path: the file; its folder exists.
        header: plain texts by name.
    """
    # Written beside and moved into place, so that a reader never sees half a file.
    part = path.with_suffix(".part")
    # Tied weights share memory, which the format refuses; copies do not.
    apart = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    save_file(apart, part, header)
    part.replace(path)


def read_tensors(path: Path, expected: str) -> tuple[Tensors, dict[str, str]]:
    """Read a file that :func:`write_tensors` wrote.

    Args:
        path: the file.
        expected: the format that its header has to name.

    Returns:
        The tensors by name, and the header.

    Raises:
        BadInput: if the file is missing, truncated or of another format.
    """
    require(path.is_file(), f"Expected a file at {path}, found none.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadInput(
            f"Expected a complete safetensors file at {path}, got one that cannot be read "
            f"({error}): copy it again."
        ) from error
    if header.get("format") != expected:
        raise BadInput(
            f"Expected a file of format {expected} at {path}, got "
            f"{header.get('format', 'a safetensors file without a format')}."
        )
    return tensors, header
