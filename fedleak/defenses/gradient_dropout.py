"""Random sparsification: each entry is sent with a probability."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedleak.defenses.base import Defense, Family, Outgoing, check_range, filtered, share_of_zeros
from fedleak.updates.entries import Entries, SentUpdate
from fedleak.updates.files import Tensors

# Standard deviations by which the share of zeros may differ from its expectation.
FAR = 6.0


@dataclass(kw_only=True, eq=False, repr=False)
class GradientDropout(Defense):
    """Sets every entry to 0 with one probability, and scales the others up.

    With the scaling, the expectation of what is sent is the update itself. The probability is the
    same for all entries, where Wangni et al. choose it by size.

    Args:
        probability: with which an entry is set to 0, from 0 to below 1.
        rescale: whether the others are divided by 1 minus the probability.

    Raises:
        BadInput: if the probability is out of its range.
    """

    name: ClassVar[str] = "gradient_dropout"
    paper: ClassVar[str] = (
        "Wangni et al., Gradient Sparsification, NeurIPS 2018, section 3, arXiv 1710.09854"
    )
    family: ClassVar[Family] = "gradient compression"
    randomised: ClassVar[bool] = True
    uses_update_alone: ClassVar[bool] = True

    probability: float = 0.5
    rescale: bool = True

    def __post_init__(self) -> None:
        fits = 0 <= self.probability < 1
        check_range(self.name, "probability", self.probability, fits, "from 0 to below 1")

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`.

        Raises:
            BadInput: if the update holds NaN or infinity.
        """
        result = dict(outgoing.update)
        for name, value in filtered(self.name, outgoing.update).items():
            kept = torch.rand(value.shape, generator=generator) >= self.probability
            result[name] = torch.where(kept, value * self._factor, 0.0)
        return result

    def entries_before(self, sent: SentUpdate) -> dict[str, Entries] | None:
        """See :meth:`Defense.entries_before`: of an entry of 0 nothing is known."""
        found = {}
        for name, value in filtered(self.name, sent.tensors).items():
            exact = Entries.exactly(value / self._factor)
            found[name] = exact.between(value == 0, -torch.inf, torch.inf)
        return found

    def contradiction(self, sent: SentUpdate) -> str | None:
        """See :meth:`Defense.contradiction`: more entries may be 0 that were so before."""
        tensors = filtered(self.name, sent.tensors)
        entries, zeros = sum(value.numel() for value in tensors.values()), share_of_zeros(tensors)
        spread = math.sqrt(self.probability * (1 - self.probability) / entries)
        if zeros < self.probability - FAR * spread:
            return f"{zeros:.1%} of its entries are 0"
        return None

    @property
    def _factor(self) -> float:
        """What an entry that is sent is multiplied by."""
        return 1 / (1 - self.probability) if self.rescale else 1.0
