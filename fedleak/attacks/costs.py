"""How far a dummy gradient is from the client's: small functions of inner products and norms.

A cost sees, for every parameter, the inner product of dummy and target gradient and their squared
norms. For a linear layer these come from the layer's inputs and output gradients alone, so that
its weight gradient need never be built (:mod:`fedleak.attacks.gradients`).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Products(NamedTuple):
    """The products of one parameter's gradients: scalars.

    Args:
        inner: inner product of dummy and target gradient.
        dummy: squared norm of the dummy gradient.
        target: squared norm of the target gradient.
    """

    inner: Tensor
    dummy: Tensor
    target: Tensor


Cost = Callable[[Mapping[str, Products]], Tensor]


def cosine(products: Mapping[str, Products]) -> Tensor:
    """``1 - cos`` of the angle between the whole gradients (Geiping 2020, eq. 4): 0 to 2."""
    inner, dummy, target = _totals(products)
    return 1 - inner / (dummy.sqrt() * target.sqrt()).clamp_min(torch.finfo(inner.dtype).tiny)


def squared_error(products: Mapping[str, Products]) -> Tensor:
    """Squared distance of the whole gradients (DLG, Zhu 2019, eq. 4): 0 or more."""
    inner, dummy, target = _totals(products)
    return dummy - 2 * inner + target


COSTS: dict[str, Cost] = {"cosine": cosine, "squared_error": squared_error}


def _totals(products: Mapping[str, Products]) -> tuple[Tensor, Tensor, Tensor]:
    inner, dummy, target = zip(*products.values(), strict=True)
    return torch.stack(inner).sum(), torch.stack(dummy).sum(), torch.stack(target).sum()
