"""Lossless compression of gradients: rank-one factors or sparse values.

The weight gradient of a linear layer for one sample is the outer product of two vectors; that of a
layer whose input is mostly 0 is sparse. Either form can be a thousand times smaller than the dense
matrix, which :class:`CompactTensors` rebuilds on access.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedleak.errors import require
from fedleak.updates.files import LARGEST, short

Encoded = dict[str, Tensor]
Factors = tuple[Tensor, Tensor]

# Entries of a matrix that are compared at once: as many as fit into the processor's cache.
BLOCK = 2**17
# Separates a tensor's name from the part's name in the encoded form. A module's path cannot
# contain it, since no part of the path is empty.
SEPARATOR = ".."
ROWS, COLUMNS = "..rows", "..columns"
INDICES, VALUES, SHAPE = "..indices", "..values", "..shape"
# Largest number of dimensions of a tensor, as in numpy.
MAX_DIMENSIONS = 64
FORMS = ({""}, {ROWS, COLUMNS}, {INDICES, VALUES, SHAPE})


class CompactTensors(Mapping[str, Tensor]):
    """Tensors by name that are stored encoded; each access decodes a tensor anew.

    Args:
        encoded: the result of :func:`encode`.
    """

    def __init__(self, encoded: Mapping[str, Tensor]) -> None:
        # Tensors that stay in their file stay there.
        self.encoded = dict(encoded) if isinstance(encoded, dict) else encoded
        self._names = list(dict.fromkeys(name.partition(SEPARATOR)[0] for name in encoded))

    def __getitem__(self, name: str) -> Tensor:
        if name in self.encoded:
            return self.encoded[name]
        if name + ROWS in self.encoded:
            return torch.outer(self.encoded[name + ROWS], self.encoded[name + COLUMNS])
        if name + SHAPE not in self.encoded:
            raise KeyError(name)
        shape, values = self.encoded[name + SHAPE].tolist(), self.encoded[name + VALUES]
        flat = torch.zeros(shape, dtype=values.dtype).flatten()
        return flat.scatter_(0, self.encoded[name + INDICES].long(), values).reshape(shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without decoding it.

        Raises:
            KeyError: if there is no such tensor.
        """
        if name + ROWS in self.encoded:
            return (len(self.encoded[name + ROWS]), len(self.encoded[name + COLUMNS]))
        if name + SHAPE in self.encoded:
            return tuple(self.encoded[name + SHAPE].tolist())
        return tuple(self.encoded[name].shape)

    def factors(self) -> dict[str, Factors]:
        """Name -> the two vectors, for the matrices that are stored as their outer product."""
        return {
            name: (self.encoded[name + ROWS], self.encoded[name + COLUMNS])
            for name in self._names
            if name + ROWS in self.encoded
        }

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def check_encoded(encoded: Mapping[str, Tensor], path: Path) -> None:
    """Check that tensors from a file have the form of :func:`encode`, before any is decoded.

    Args:
        encoded: the tensors by name.
        path: the file, for messages.

    Raises:
        BadInput: if parts are missing, do not fit together or decode to more than
            :data:`fedleak.updates.files.LARGEST` bytes.
    """
    parts: dict[str, set[str]] = {}
    for name in encoded:
        base, separator, rest = name.partition(SEPARATOR)
        parts.setdefault(base, set()).add(separator + rest)
    total = 0
    for name, found in parts.items():
        require(
            found in FORMS,
            f"Expected a whole tensor, rows and columns, or indices, values and shape of "
            f"{short(name)} in {path}, got {short(sorted(found))}.",
        )
        if ROWS in found:
            rows, columns = encoded[name + ROWS], encoded[name + COLUMNS]
            size = rows.numel() * columns.numel() * rows.element_size()
            fits = rows.dim() == columns.dim() == 1 and rows.dtype == columns.dtype
        elif SHAPE in found:
            values, shape = encoded[name + VALUES], encoded[name + SHAPE]
            fits = _is_sparse(encoded[name + INDICES], values, shape)
            size = math.prod(shape.tolist()) * values.element_size() if fits else 0
        else:
            fits, size = True, encoded[name].nbytes
        require(
            fits,
            f"Expected the parts of {short(name)} in {path} to fit together, got "
            f"{', '.join(_described(encoded[name + part]) for part in sorted(found))}.",
        )
        total += size
        require(
            total <= LARGEST,
            f"Expected a gradient of at most {LARGEST:,} bytes in {path}, got one of {total:,} or "
            "more when it is decoded.",
        )


def _is_sparse(indices: Tensor, values: Tensor, shape: Tensor) -> bool:
    """Whether these are the parts of a sparse tensor, with each entry at most once."""
    integers = (torch.int32, torch.int64)
    if not (indices.dim() == values.dim() == shape.dim() == 1 and len(indices) == len(values)):
        return False
    if indices.dtype not in integers or shape.dtype not in integers:
        return False
    if not 1 <= len(shape) <= MAX_DIMENSIONS or int(shape.min()) < 1:
        return False
    if not len(indices):
        return True
    ascending = bool((indices[1:] > indices[:-1]).all())
    return ascending and int(indices[0]) >= 0 and int(indices[-1]) < math.prod(shape.tolist())


def _described(value: Tensor) -> str:
    return f"{value.dtype} of shape {short(tuple(value.shape))}"


def encode(tensors: Mapping[str, Tensor], factors: Mapping[str, Factors] | None = None) -> Encoded:
    """Encode tensors, each in the smallest of three forms; decoding gives every entry exactly.

    Args:
        tensors: by name; no name contains two consecutive dots.
        factors: name of a matrix -> two vectors whose outer product it may be, as the sender
            computed them. They are used only if their product equals the matrix.

    Returns:
        Tensor by name: dense tensors under their own names, outer products as rows and columns,
        sparse tensors as indices, values and shape.
    """
    found: Encoded = {}
    for name, value in tensors.items():
        known = (factors or {}).get(name)
        if known is not None and _is_product(*known, value):
            found |= {name + ROWS: known[0], name + COLUMNS: known[1]}
            continue
        nonzero = value.flatten() != 0
        # An index takes 4 bytes, as a value does.
        if value.dim() and 2 * int(nonzero.sum()) < value.numel() < 2**31:
            indices = nonzero.nonzero().flatten()
            found |= {
                name + INDICES: indices.int(),
                name + VALUES: value.flatten()[indices],
                name + SHAPE: torch.tensor(value.shape),
            }
        else:
            found[name] = value
    return found


def _is_product(rows: Tensor, columns: Tensor, value: Tensor) -> bool:
    """Whether a matrix is this outer product; compared in blocks, to save memory."""
    if value.shape != (len(rows), len(columns)):
        return False
    size = max(1, BLOCK // max(1, len(columns)))
    blocks = zip(rows.split(size), value.split(size), strict=True)
    return all(_equal_inplace(torch.outer(part, columns), block) for part, block in blocks)


def _equal_inplace(product: Tensor, block: Tensor) -> bool:
    """As torch.equal for finite matrices, but overwrites ``product`` and takes half the time."""
    return not block.numel() or float(product.sub_(block).abs_().max()) == 0


def weighted_sum(
    gradients: Sequence[CompactTensors], weights: Sequence[float]
) -> dict[str, Tensor]:
    """The weighted sum of encoded gradients, computed without decoding them.

    Args:
        gradients: the gradients, with the same names and shapes.
        weights: one weight per gradient.

    Returns:
        Tensor by name, of the gradients' dtype; equal to the sum of decoded tensors up to rounding.
    """
    total: dict[str, Tensor] = {}
    for name in gradients[0]:
        products = [
            (g.encoded[name + ROWS] * weight, g.encoded[name + COLUMNS])
            for g, weight in zip(gradients, weights, strict=True)
            if name + ROWS in g.encoded
        ]
        value = None
        if products:
            rows, columns = (torch.stack(parts) for parts in zip(*products, strict=True))
            value = rows.T @ columns
        for gradient, weight in zip(gradients, weights, strict=True):
            encoded = gradient.encoded
            if name + ROWS in encoded:
                continue
            if value is None:
                value = gradient[name] * weight
            elif name + SHAPE in encoded:
                parts = encoded[name + VALUES] * weight
                value.view(-1).index_add_(0, encoded[name + INDICES].long(), parts)
            else:
                value.add_(encoded[name], alpha=weight)
        assert value is not None
        total[name] = value
    return total
