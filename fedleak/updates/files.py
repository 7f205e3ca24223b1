"""Files of updates, weights and ground truth: safetensors with a header."""

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
"""Largest size in bytes of one decoded update, ground truth or data array.

Files may be untrusted, and a few bytes of a compressed gradient or archive may expand to any amount
of memory. The limit is a model of 2**30 parameters in float32: far more than simulated clients
train, and little enough for the memory of a workstation.
"""
HEADER = 4 * 2**20
"""Largest size in bytes of a safetensors file's header: some 40,000 tensors."""
DTYPES = frozenset({"F16", "BF16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "BOOL"})
"""Permitted dtypes, in safetensors' names: those of parameters, buffers, inputs and labels."""

NAME = re.compile(r"\w[\w .,+()=-]*")
"""Pattern of the names of models and attacks, which become parts of file names.

The first character is a letter, digit or underscore; spaces and ``. , + ( ) = -`` may follow, as in
``smlp+precode``. Path separators are not allowed.
"""
NAME_BYTES = 100
"""Longest name of a model or an attack, in bytes of UTF-8."""


def update_key(round_: int, client: int) -> str:
    """The name of the files of one client's update in one round, such as ``r0001-c0003``."""
    return f"r{round_:04d}-c{client:04d}"


def check_name(kind: str, name: str) -> str:
    """Check that the name of a model or an attack can be a part of a file name.

    Args:
        kind: what is named, such as ``the model``, for the message.
        name: the name.

    Returns:
        The name.

    Raises:
        BadInput: if it does not match :data:`NAME`, or takes more than 100 bytes in UTF-8.
    """
    # A matching name contains no lone surrogates, so it can be encoded.
    fits = NAME.fullmatch(name) is not None and len(name.encode()) <= NAME_BYTES
    require(
        fits,
        f"Expected the name of {kind} to consist of letters, digits, spaces and _ . , + ( ) = -, "
        f"to begin with a letter or digit and to have at most {NAME_BYTES} bytes, got "
        f"{short(name)}.",
    )
    return name


def short(value: object, width: int = 80) -> str:
    """A value read from a file as text for a message: on one line and at most ``width`` long."""
    text = repr(value)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def update_files(folder: Path) -> list[Path]:
    """The update files in a folder, in the order of rounds and clients."""
    found = {}
    for path in folder.glob("r*-c*.safetensors"):
        if match := KEY.fullmatch(path.stem):
            found[int(match[1]), int(match[2])] = path
    return [found[key] for key in sorted(found)]


def remove_round(folder: Path, round_: int) -> None:
    """Remove the files of a round that is run again, or that another federation has left.

    Args:
        folder: the folder of the updates.
        round_: number of the round, from 1.
    """
    for path in folder.glob(f"r{round_:04d}-*.safetensors"):
        path.unlink()


def write_tensors(tensors: Mapping[str, Tensor], path: Path, header: dict[str, str]) -> None:
    """Write tensors and a header to a safetensors file atomically.

    Args:
        tensors: by name.
        path: the file; its folder exists.
        header: strings by name.
    """
    # Written to a temporary file and renamed, so that a reader never sees half a file.
    part = path.with_suffix(".part")
    # Tied weights share memory, which the format refuses; copies do not.
    copies = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    save_file(copies, part, header)
    part.replace(path)


def read_tensors(path: Path, expected: str) -> tuple[Tensors, dict[str, str]]:
    """Read a file that :func:`write_tensors` wrote.

    Args:
        path: the file.
        expected: the format that its header must name.

    Returns:
        The tensors by name, and the header.

    Raises:
        BadInput: if the file is missing, truncated, larger than :data:`LARGEST`, of another format,
            or has tensors of other dtypes than :data:`DTYPES`.
    """
    with opened(path) as file:
        header, names = check_format(file, path, expected)
        return {name: file.get_tensor(name) for name in names}, header


def check_format(file: Any, path: Path, expected: str) -> tuple[dict[str, str], list[str]]:
    """Check the format that a file's header names.

    Args:
        file: the handle of :func:`opened`.
        path: the file, for messages.
        expected: the format.

    Returns:
        The header, and the names of the tensors; those of a list of arrays in its order.

    Raises:
        BadInput: if the header names another format or none.
    """
    header = file.metadata() or {}
    if header.get("format") != expected:
        found = header.get("format")
        raise BadInput(
            f"Expected a file of format {expected} at {path}, got "
            f"{'a safetensors file without a format' if found is None else short(found)}."
        )
    names = list(file.keys())
    if set(names) == {str(position) for position in range(len(names))}:
        names.sort(key=int)  # the file has the names in the order of text
    return header, names


@contextmanager
def opened(path: Path, dtypes: frozenset[str] = DTYPES, *, check: bool = True) -> Iterator[Any]:
    """Open a safetensors file after checking its size and dtypes.

    Args:
        path: the file.
        dtypes: permitted dtypes, in safetensors' names.
        check: whether to check dtypes; False of a file that was opened before.

    Yields:
        The file handle of ``safetensors.safe_open``. Errors of reading it become BadInput.

    Raises:
        BadInput: if the file is missing, truncated, larger than :data:`LARGEST`, or has tensors
            of other dtypes.
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
            # A length beyond the file's end is damage that the library reports.
            length <= HEADER or length > size,
            f"Expected a header of at most {HEADER:,} bytes in {path}, got one of {length:,}.",
        )
        with safe_open(path, framework="pt") as file:
            for name in file.keys() if check else ():
                kind = file.get_slice(name).get_dtype()
                require(
                    kind in dtypes,
                    f"Expected tensors of the types {', '.join(sorted(dtypes))} in {path}, got "
                    f"{kind} in {short(name)}.",
                )
            yield file
    except BadInput:
        raise
    except Exception as error:  # the library and torch raise a dozen classes for damaged files
        reason = str(error).partition("\n")[0]
        raise BadInput(
            f"Expected a complete safetensors file at {path}, got one that cannot be read "
            f"({reason:.200}): copy it again."
        ) from error
