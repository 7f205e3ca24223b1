"""Tensors that stay in their file until they are used."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedleak.updates.files import check_format, opened


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file by name; each access reads one, and none is kept.

    A pickle has the tensors themselves, so that a process without access to the file can use them.

    Args:
        path: a file that :func:`fedleak.updates.files.write_tensors` wrote.
        expected: the format that its header must name.

    Attributes:
        header: the file's header.

    Raises:
        BadInput: see :func:`fedleak.updates.files.read_tensors`; if the file is changed later, when
            a tensor is read.
    """

    def __init__(self, path: Path, expected: str) -> None:
        self._path = path
        with opened(path) as file:
            self.header, names = check_format(file, path, expected)
        self._names = {name: name for name in names}
        self._like: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}

    def renamed(self, names: Mapping[str, str], like: Mapping[str, Tensor]) -> "StoredTensors":
        """The same tensors by other names.

        Args:
            names: name here -> new name; the others are left out.
            like: by new name, tensors whose shapes and dtypes are taken over.
        """
        other = object.__new__(StoredTensors)
        other._path, other.header = self._path, self.header
        other._names = {new: self._names[old] for old, new in names.items() if old in self._names}
        other._like = {new: (tuple(like[new].shape), like[new].dtype) for new in other._names}
        return other

    def __getitem__(self, name: str) -> Tensor:
        own = self._names[name]
        with opened(self._path, check=False) as file:
            found: Tensor = file.get_tensor(own)
        if name in self._like:
            shape, dtype = self._like[name]
            found = found.to(dtype).reshape(shape)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)
