"""How far a dummy gradient is from the client's: small functions of inner products and norms.

A cost sees, for every parameter, the inner product of dummy and target gradient and their squared
norms. For a linear layer these come from the layer's inputs and output gradients alone, so that
its weight gradient need never be built (:mod:`fedleak.attacks.matching.dummy_gradient`).
"""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor

from fedleak.errors import BadInput, unknown_name


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


Weights = Mapping[str, float] | None

# Products and weight of every parameter that is compared; a missing weight is 1.
Cost = Callable[[Mapping[str, Products], Weights], Tensor]


def cosine(products: Mapping[str, Products], weights: Weights = None) -> Tensor:
    """``1 - cos`` of the angle between the whole gradients (Geiping 2020, eq. 4): 0 to 2.

    Args:
        products: products by parameter name.
        weights: of each parameter's share in the inner product and in both squared norms.
    """
    inner, dummy, target = _totals(products, weights)
    return 1 - inner / (dummy.sqrt() * target.sqrt()).clamp_min(torch.finfo(inner.dtype).tiny)


def squared_error(
    products: Mapping[str, Products], weights: Mapping[str, float] | None = None
) -> Tensor:
    """Squared distance of the whole gradients (DLG, Zhu 2019, eq. 4): 0 or more.

    Args:
        products: products by parameter name.
        weights: of each parameter's squared distance.
    """
    inner, dummy, target = _totals(products, weights)
    return dummy - 2 * inner + target


def relative_error(
    products: Mapping[str, Products], weights: Mapping[str, float] | None = None
) -> Tensor:
    """Mean over the parameters of squared distance over squared norm of the target: 0 or more.

    Every parameter counts alike, however small its gradient, so that large layers do not drown the
    others; but for one of next to no gradient, which is all rounding.

    Args:
        products: products by parameter name.
        weights: of each parameter in the mean.
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


COSTS: dict[str, Cost] = {
    "cosine": cosine, "squared_error": squared_error, "relative_error": relative_error,
}  # fmt: skip


def layer_weights(names: Sequence[str], patterns: Mapping[str, float] | None) -> dict[str, float]:
    """The weight of every parameter that is compared.

    Args:
        names: names of the parameters.
        patterns: weight, at least 0, by name or pattern such as ``classifier.*``, of which the last
            one that fits counts; parameters that none fits, or of weight 0, are left out. None:
            all parameters, with weight 1.

    Returns:
        Weight by name, none of them 0.

    Raises:
        BadInput: if a pattern fits no parameter or no parameter is left.
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
