"""Quantisation of every tensor to a few equally spaced levels."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.defenses.base import Defense, Family, Outgoing, check_range, filtered
from fedleak.updates.entries import Entries, SentUpdate
from fedleak.updates.files import Tensors

# An entry lies on a level if it is off by no more than this share of a level's width.
ON_LEVEL = 0.01


@dataclass(kw_only=True, eq=False, repr=False)
class Quantization(Defense):
    """Rounds the entries of every tensor to ``2^bits - 1`` equally spaced levels, 0 among them.

    The outermost levels are the tensor's largest magnitude and its negative, as QSGD has them with
    the maximum norm. Stochastic rounding goes up or down with the probability by which the
    expectation is the entry itself.

    Args:
        bits: bits of an entry, from 2 to 16.
        stochastic: whether entries are rounded at random, or to the nearest level.

    Raises:
        BadInput: if the number of bits is out of its range.
    """

    name: ClassVar[str] = "quantization"
    paper: ClassVar[str] = "Alistarh et al., QSGD, NeurIPS 2017, section 3.1, arXiv 1610.02132"
    family: ClassVar[Family] = "gradient compression"
    randomised: ClassVar[bool] = True
    uses_update_alone: ClassVar[bool] = True

    bits: int = 8
    stochastic: bool = True

    def __post_init__(self) -> None:
        check_range(self.name, "bits", self.bits, 2 <= self.bits <= 16, "from 2 to 16")

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`.

        Raises:
            BadInput: if the update holds NaN or infinity.
        """
        result = dict(outgoing.update)
        for name, value in filtered(self.name, outgoing.update).items():
            width = self._width(value)
            if not width:
                continue
            levels = value.double() / width
            if self.stochastic:
                draws = torch.rand(value.shape, generator=generator, dtype=torch.float64)
                levels = (levels + draws).floor()
            else:
                levels = levels.round()
            result[name] = (levels.clamp(-self._levels, self._levels) * width).to(value)
        return result

    def entries_before(self, sent: SentUpdate) -> dict[str, Entries] | None:
        """See :meth:`Defense.entries_before`: a level's entries lie around it.

        Rounded to the nearest level they are up to half a level's width away, with a standard
        deviation of ``1 / sqrt(12)`` of it if they are spread evenly, else twice as far and
        ``1 / sqrt(6)``. None is larger than the outermost level.
        """
        found = {}
        for name, value in filtered(self.name, sent.tensors).items():
            width = self._width(value)
            far = (1.0 if self.stochastic else 0.5) * width
            spread = width / math.sqrt(6 if self.stochastic else 12)
            largest = value.abs().max() + sent.margin(name)
            found[name] = Entries(
                value,
                torch.maximum(value - far - sent.margin(name), -largest),
                torch.minimum(value + far + sent.margin(name), largest),
                torch.full_like(value, spread),
            )
        return found

    def contradiction(self, sent: SentUpdate) -> str | None:
        """See :meth:`Defense.contradiction`."""
        for name, value in filtered(self.name, sent.tensors).items():
            width = self._width(value)
            if not width:
                continue
            levels = value.double() / width
            off = (levels - levels.round()).abs() - sent.margin(name) / width
            if bool((off > ON_LEVEL).any()):
                return f"the entries of `{name}` do not lie on {2 * self._levels + 1} levels"
        return None

    @property
    def _levels(self) -> int:
        """Number of levels above 0."""
        return int(2 ** (self.bits - 1)) - 1

    def _width(self, value: Tensor) -> float:
        """Distance of the levels of a tensor; 0 if all of it is 0."""
        return float(value.double().abs().max()) / self._levels if value.numel() else 0.0
