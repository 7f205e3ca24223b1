"""Tensors in float64, block by block.

Sums over an update are taken in float64. Whole copies in float64 take longer than the sums
themselves, since their memory is fresh; blocks stay in the processor's cache.
"""

from collections.abc import Iterator

from torch import Tensor

BLOCK = 2**17
"""Largest number of entries in a block."""


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one size, flattened, in float64.

    Args:
        tensors: each of the same number of entries.

    Yields:
        A block of each, ``(entries,)``, at the same place of all; none of tensors without entries.
        Of a tensor in float64 it is a view.
    """
    flat = [value.detach().reshape(-1) for value in tensors]
    for begin in range(0, flat[0].numel(), BLOCK):
        yield tuple(value[begin : begin + BLOCK].double() for value in flat)


def row_blocks(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matrices of one shape, in float64, some rows at a time.

    Args:
        matrices: each ``(rows, columns)``.

    Yields:
        The same rows of each, in order.
    """
    step = max(1, BLOCK // max(1, matrices[0].shape[1]))
    for begin in range(0, len(matrices[0]), step):
        yield tuple(value[begin : begin + step].double() for value in matrices)


def inner_product(one: Tensor, other: Tensor) -> float:
    """The inner product of two tensors of one size, in float64."""
    return sum(float(a @ b) for a, b in blocks(one, other))
