"""Distances between a dummy gradient and the client's, as functions of inner products and norms.

A cost takes, for every parameter, the inner product of dummy and target gradient and their squared
norms. For a linear layer these follow from the layer's inputs and output gradients, without
building its weight gradient (:mod:`fedleak.attacks.matching.dummy_gradient`).
"""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedleak.errors import BadInput, unknown_name


class Products(NamedTuple):
    """Inner product and squared norms of one parameter's gradients, scalars.

    Args:
        inner: inner product of dummy and target gradient.
        dummy: squared norm of the dummy gradient.
        target: squared norm of the target gradient.
    """

    inner: Tensor
    dummy: Tensor
    target: Tensor


Weights = Mapping[str, float] | None

CostName = Literal["cosine", "squared_error", "relative_error"]

# Takes the products of every parameter that is compared, and their weights (1 if missing).
Cost = Callable[[Mapping[str, Products], Weights], Tensor]


def cosine(products: Mapping[str, Products], weights: Weights = None) -> Tensor:
    """Cosine distance of the whole gradients (Geiping et al. 2020, eq. 4).

    Args:
        products: products by parameter name.
        weights: weight of each parameter in the inner product and in both squared norms.

    Returns:
        A scalar in [0, 2].
    """
    inner, dummy, target = _totals(products, weights)
    return 1 - inner / (dummy.sqrt() * target.sqrt()).clamp_min(torch.finfo(inner.dtype).tiny)


def squared_error(
    products: Mapping[str, Products], weights: Mapping[str, float] | None = None
) -> Tensor:
    """Squared Euclidean distance of the whole gradients (DLG, Zhu et al. 2019, eq. 4).

    Args:
        products: products by parameter name.
        weights: weight of each parameter's squared distance.

    Returns:
        A scalar, at least 0 up to rounding.
    """
    inner, dummy, target = _totals(products, weights)
    return dummy - 2 * inner + target


def relative_error(
    products: Mapping[str, Products], weights: Mapping[str, float] | None = None
) -> Tensor:
    """Mean over the parameters of squared distance over squared norm of the target.

    Every parameter has the same influence, whatever the size of its gradient; only one whose
    gradient is rounding error counts less.

    Args:
        products: products by parameter name.
        weights: weight of each parameter in the mean.

    Returns:
        A scalar, at least 0 up to rounding.
    """
    errors, shares = [], []
    whole = torch.stack([target for _, _, target in products.values()]).sum()
    limits = torch.finfo(whole.dtype)
    least = (limits.eps * whole).clamp_min(limits.tiny)
    for name, (inner, dummy, target) in products.items():
        share = (weights or {}).get(name, 1.0)
        errors.append(share * (dummy - 2 * inner + target) / torch.maximum(target, least))
        shares.append(share)
    return torch.stack(errors).sum() / sum(shares)


COSTS: dict[CostName, Cost] = {
    "cosine": cosine, "squared_error": squared_error, "relative_error": relative_error,
}  # fmt: skip


def layer_weights(names: Sequence[str], patterns: Mapping[str, float] | None) -> dict[str, float]:
    """The weight of every parameter that is compared.

    Args:
        names: names of the parameters.
        patterns: weight, at least 0, by name or pattern such as ``classifier.*``; the last match
            counts, and parameters without a match or with weight 0 are not compared. If None, all
            parameters have weight 1.

    Returns:
        Weight by name, all positive.

    Raises:
        BadInput: if a pattern matches no parameter or no parameter is compared.
    """
    if patterns is None:
        return dict.fromkeys(names, 1.0)
    chosen: dict[str, float] = {}
    for pattern, weight in patterns.items():
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        if not fitting:
            raise unknown_name("parameter in `layers`", pattern, names)
        chosen |= dict.fromkeys(fitting, float(weight))
    left = {name: chosen[name] for name in names if chosen.get(name, 0.0) > 0}
    if not left:
        raise BadInput("Expected `layers` to leave a parameter to compare, got weights of 0 alone.")
    return left


def _totals(products: Mapping[str, Products], weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    shares = [(weights or {}).get(name, 1.0) for name in products]
    scaled = [
        item if share == 1.0 else Products(*(share * value for value in item))
        for share, item in zip(shares, products.values(), strict=True)
    ]
    inner, dummy, target = zip(*scaled, strict=True)
    return torch.stack(inner).sum(), torch.stack(dummy).sum(), torch.stack(target).sum()
