"""Gradient matching where the gradient's entries are known up to bounds, or not at all."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedleak.attacks.gradient_origin import TYPICAL
from fedleak.attacks.matching.costs import Products
from fedleak.attacks.matching.dummy_gradient import DummyGradient, Target, dense_products
from fedleak.attacks.matching.hooks import Rows
from fedleak.updates.entries import Entries
from fedleak.updates.files import Tensors


class BoundedGradient(DummyGradient):
    """A dummy gradient that is compared with what an update tells of the client's gradient.

    Of an inverted step of Adam and its kin, each entry of the client's gradient is known up to a
    bound, or by its sign and a lower bound of its size, see
    :mod:`fedleak.updates.gradient_estimate`; of a told defence, see
    :class:`fedleak.updates.entries.Entries`: an entry of which nothing is known is not compared,
    and one that was clipped only as far as it falls short of the clip. The products are those of
    the target plus the part of the difference from it by which an entry is out of its bounds, and a
    share of the part within them. So every cost is 0 at the client's inputs up to that share, where
    the cosine distance from an estimate of the gradient, or from its signs, is not. The gradients
    of all parameters are built. Arguments are those of :class:`DummyGradient`.
    """

    def bounded_targets(
        self,
        gradients: Sequence[Tensors],
        deviations: Sequence[Mapping[str, Tensor]],
        entries: Sequence[Mapping[str, Entries]] = (),
    ) -> Target:
        """Targets with their bounds, of several updates, stacked.

        Args:
            gradients: gradient by parameter name, one for each update.
            deviations: bound on the error of each entry, infinite where only the sign and half of
                the size, as a lower bound, are known; missing where the gradient is exact.
            entries: what is known where a told defence changed entries; empty if none did.

        Returns:
            Parameter name -> (gradient, lowest, highest, squared norm).
        """
        result: Target = {}
        for name, found in self.targets(gradients, 1).items():
            value, norm = found
            error = torch.stack(
                [
                    own[name].to(gradient[name])
                    if name in own
                    else torch.zeros_like(gradient[name])
                    for gradient, own in zip(gradients, deviations, strict=True)
                ]
            )
            infinite = torch.full_like(value, torch.inf)
            open_, positive, half = error.isinf(), value > 0, value / 2
            lowest = torch.where(open_, torch.where(positive, half, -infinite), value - error)
            highest = torch.where(open_, torch.where(positive, infinite, half), value + error)
            for row, known in enumerate(own.get(name) for own in entries):
                if known is not None:
                    lowest[row], highest[row] = _compared_bounds(known, value[row])
            result[name] = (value, lowest, highest, norm)
        return result

    def compare(
        self, free: Tensors, layers: Rows, target: Mapping[str, tuple[Tensor, ...]]
    ) -> dict[str, Products]:
        """See :meth:`DummyGradient.compare`; ``target`` is of :meth:`bounded_targets`."""
        result = {}
        for name, value in free.items():
            wanted, lowest, highest, norm = target[name]
            result[name] = dense_products(
                _as_far_as_known(value, wanted, lowest, highest), wanted, norm
            )
        return result


def _compared_bounds(known: Entries, like: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds within which entries are not compared; an estimate without bounds is compared."""
    alone = known.measured & ~(known.lowest.isfinite() & known.highest.isfinite())
    bounds = (torch.where(alone, known.value, bound) for bound in (known.lowest, known.highest))
    low, high = (bound.to(like) for bound in bounds)
    return low, high


def _as_far_as_known(value: Tensor, wanted: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    inside = torch.minimum(torch.maximum(value, lowest), highest)
    bounded = lowest.isfinite() & highest.isfinite()
    return wanted + (value - inside) + TYPICAL * torch.where(bounded, inside - wanted, 0.0)
