"""The files in which updates, weights and truth travel: safetensors with a header."""

import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedleak.errors import BadInput, require

Tensors = dict[str, Tensor]
UPDATE_FORMAT = "fedleak-update-1"
GLOBAL_FORMAT = "fedleak-global-1"
TRUTH_FORMAT = "fedleak-truth-1"
KEY = re.compile(r"r(\d{4,9})-c(\d{4,9})", re.ASCII)

LARGEST = 4 * 2**30
"""Bytes of the tensors of one update, one truth or one data array, written out, at most.

A file may come from somebody else, and a few bytes of a compact gradient or of a compressed archive
may stand for any amount of memory. This is a model of 2**30 parameters in float32, far beyond what
simulated clients train, and little enough for the memory of a workstation.
"""
HEADER = 4 * 2**20
"""Bytes of the header of a safetensors file, at most: some 40,000 tensors."""
DTYPES = frozenset({"F16", "BF16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "BOOL"})
"""Types of tensors in safetensors' names: those of parameters, buffers, inputs and labels."""

NAME = re.compile(r"\w[\w .,+()=-]*")
"""What the names of models and attacks look like, as they become parts of the names of files.

A letter, digit or underscore comes first; then also spaces and ``. , + ( ) = -`` are allowed, such
as in ``smlp+precode``. No separator of folders is among them.
"""
NAME_BYTES = 100


def update_key(round_: int, client: int) -> str:
    """The name of the files of one client's update in one round, such as ``r0001-c0003``."""
    return f"r{round_:04d}-c{client:04d}"


def check_name(kind: str, name: str) -> str:
    """The name of a model or an attack, if it may become a part of a file's name.

    Args:
        kind: what has the name, such as ``model``, for the message.
        name: the name.

    Raises:
        BadInput: if it does not match :data:`NAME`, or takes more than 100 bytes in UTF-8.
    """
    # A match has no lone surrogates, so that it can be encoded.
    fits = NAME.fullmatch(name) is not None and len(name.encode()) <= NAME_BYTES
    require(
        fits,
        f"Expected the name of {kind} to consist of letters, digits, spaces and _ . , + ( ) = -, "
        f"to begin with a letter or digit and to have at most {NAME_BYTES} bytes, got "
        f"{short(name)}.",
    )
    return name


def short(value: object, width: int = 80) -> str:
    """A value of a file in a message: on one line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= width else f"{text[: width - 1]}…"


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
        BadInput: if the file is missing, truncated, larger than :data:`LARGEST`, of another format,
            or holds tensors of other types than :data:`DTYPES`.
    """
    with opened(path) as file:
        header = file.metadata() or {}
        if header.get("format") != expected:
            found = header.get("format")
            raise BadInput(
                f"Expected a file of format {expected} at {path}, got "
                f"{'a safetensors file without a format' if found is None else short(found)}."
            )
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118


@contextmanager
def opened(path: Path, dtypes: frozenset[str] = DTYPES) -> Iterator[Any]:
    """A safetensors file whose size and types have been checked before any tensor is read.

    Args:
        path: the file.
        dtypes: types that its tensors may have, in safetensors' names.

    Yields:
        What ``safetensors.safe_open`` gives; what reading it raises in the block becomes BadInput.

    Raises:
        BadInput: if the file is missing, truncated, larger than :data:`LARGEST`, or holds tensors
            of other types.
    """
    require(path.is_file(), f"Expected a file at {path}, found none.")
    try:
        size = path.stat().st_size
        require(
            size <= LARGEST + HEADER,
            f"Expected at most {LARGEST:,} bytes of tensors in {path}, got a file of {size:,}.",
        )
        with path.open("rb") as raw:
            start = raw.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        require(
            # A length beyond the file's end is damage, of which the library tells.
            length <= HEADER or length > size,
            f"Expected a header of at most {HEADER:,} bytes in {path}, got one of {length:,}.",
        )
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                kind = file.get_slice(name).get_dtype()
                require(
                    kind in dtypes,
                    f"Expected tensors of the types {', '.join(sorted(dtypes))} in {path}, got "
                    f"{kind} in {short(name)}.",
                )
            yield file
    except BadInput:
        raise
    except Exception as error:  # the library and torch have a dozen classes for damage
        reason = str(error).partition("\n")[0]
        raise BadInput(
            f"Expected a complete safetensors file at {path}, got one that cannot be read "
            f"({reason:.200}): copy it again."
        ) from error
