"""Public samples from a file, and whether they are like the clients'."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fedleak.audit.ladder import Public, Victim
from fedleak.errors import BadInput, require
from fedleak.updates.files import short

INPUTS, LABELS = "inputs", "labels"


def read_public(path: Path) -> Public:
    """Public samples from a file.

    Args:
        path: an .npz file with ``inputs``, finite numbers as the clients' models take them,
            ``(N, ...)``, and ``labels``, whole numbers from 0 on, ``(N,)``.

    Raises:
        BadInput: if it is no such file or has other content.
    """
    arrays = _arrays(path)
    inputs, labels = arrays[INPUTS], arrays[LABELS]
    require(
        inputs.ndim >= 1 and labels.ndim == 1 and len(inputs) == len(labels) > 0,
        f"Expected `inputs` and `labels` of equal length in {path}, got "
        f"{short({name: value.shape for name, value in arrays.items()})}.",
    )
    require(
        inputs.dtype.kind in "fiub" and bool(np.isfinite(inputs).all()),
        f"Expected finite numbers as `inputs` in {path}, got other values of type {inputs.dtype}.",
    )
    require(
        labels.dtype.kind in "iub" and bool((labels >= 0).all()),
        f"Expected whole numbers from 0 on as `labels` in {path}, got other values of type "
        f"{labels.dtype}.",
    )
    samples = torch.from_numpy(np.ascontiguousarray(inputs, inputs.dtype.newbyteorder("=")))
    samples = samples.float() if samples.is_floating_point() else samples
    return Public(samples, torch.from_numpy(labels.astype(np.int64)), path.name)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The two arrays of the file.

    Raises:
        BadInput: if it is no .npz file, is damaged, or has no such arrays.
    """
    wanted = f"Expected an .npz file with `{INPUTS}` and `{LABELS}` at {path}"
    require(path.is_file(), f"{wanted}, found none.")
    require(zipfile.is_zipfile(path), f"{wanted}, got a file of another kind.")
    try:
        with np.load(path, allow_pickle=False) as file:
            given = list(file.files)
            missing = {INPUTS, LABELS} - set(given)
            require(not missing, f"{wanted}, got {', '.join(sorted(given)) or 'no array'} in it.")
            return {name: _array(file, name, path) for name in (INPUTS, LABELS)}
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"{wanted}, got a damaged one.") from error


def _array(file: np.lib.npyio.NpzFile, name: str, path: Path) -> np.ndarray:
    try:
        found = file[name]
    except ValueError as error:  # NumPy advises to load objects all the same, which runs code
        raise BadInput(
            f"Expected numbers as `{name}` in {path}, got Python objects or a damaged array."
        ) from error
    require(
        isinstance(found, np.ndarray),
        f"Expected an array as `{name}` in {path}, got a file of another kind.",
    )
    return found


def check_public(public: Public, victims: Sequence[Victim]) -> None:
    """Check that public samples are like those that the clients' models were called with.

    Texts may have another length than the clients'.

    Args:
        public: the public samples.
        victims: the clients' updates, at least one.

    Raises:
        BadInput: if they have another shape or type.
    """
    given = tuple(public.inputs.shape[1:])
    shapes = list(dict.fromkeys(tuple(v.known.knowledge.input_shape) for v in victims))
    whole = victims[0].whole
    same = given in shapes or (whole is not None and len(given) in {len(s) for s in shapes})
    require(
        same,
        f"Expected `{INPUTS}` of the shape {_shape(shapes[0])} per sample in {public.name}, as the "
        f"clients' model takes them, got {_shape(given)}.",
    )
    require(
        whole is None
        or (
            not public.inputs.is_floating_point()
            and 0 <= int(public.inputs.min()) <= int(public.inputs.max()) < whole
        ),
        f"Expected whole numbers from 0 to {(whole or 0) - 1} as `{INPUTS}` in {public.name}, as "
        "the clients' model takes them, got others.",
    )


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
