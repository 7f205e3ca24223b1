"""The percentile filter of NVFlare: small entries become 0, large ones are clipped."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fedleak.defenses.base import (
    Defense,
    Family,
    Outgoing,
    check_range,
    dropped_entries,
    filtered,
    share_of_zeros,
    sizes,
)
from fedleak.defenses.pruning import least_size
from fedleak.updates.entries import Entries, SentUpdate
from fedleak.updates.files import Tensors

# Relative rounding error of an entry that was clipped, and the share of a percentile's zeros that
# may be missing, as entries of one size are cut together or not at all.
ROUNDING, FEWER = 1e-5, 0.02


@dataclass(kw_only=True, eq=False, repr=False)
class Percentile(Defense):
    """Of the change per local step, sets small entries to 0 and clips the others.

    As NVFlare's ``PercentilePrivacy`` does: the threshold is a percentile of the magnitudes of all
    entries of all tensors together, interpolated linearly between two of them. What is smaller
    becomes 0, the rest is clipped to +-gamma. The update is divided by the number of local steps
    before and multiplied by it afterwards. A parameter of a single number passes as it is. Of the
    protocol fedsgd the gradient takes the place of the change, as with a learning rate of 1. It is
    no differential privacy.

    Args:
        percentile: percentile of the magnitudes, from 0 (nothing is set to 0) to 100.
        gamma: largest magnitude of an entry per local step, positive.

    Raises:
        BadInput: if a value is out of its range.
    """

    name: ClassVar[str] = "percentile"
    paper: ClassVar[str] = (
        "Shokri and Shmatikov, CCS 2015, section 5.2, https://doi.org/10.1145/2810103.2813687, as "
        "in NVFlare, https://nvflare.readthedocs.io"
    )
    family: ClassVar[Family] = "gradient compression"
    uses_update_alone: ClassVar[bool] = True

    percentile: float = 10.0
    gamma: float = 0.01

    def __post_init__(self) -> None:
        fits = 0 <= self.percentile <= 100
        check_range(self.name, "percentile", self.percentile, fits, "from 0 to 100")
        check_range(self.name, "gamma", self.gamma, 0 < self.gamma < math.inf, "positive")

    def keeps_norm(self) -> bool:
        """See :meth:`Defense.keeps_norm`."""
        return True

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`.

        Raises:
            BadInput: if the update holds NaN or infinity.
        """
        steps = outgoing.steps
        changed = {
            name: value / steps for name, value in filtered(self.name, outgoing.update).items()
        }
        result = dict(outgoing.update)
        if not changed:
            return result
        threshold = float(np.percentile(sizes(changed).numpy(), self.percentile))
        for name, value in changed.items():
            kept = torch.where(value.abs() < threshold, 0.0, value)
            result[name] = kept.clamp(-self.gamma, self.gamma) * steps
        return result

    def entries_before(self, sent: SentUpdate) -> dict[str, Entries] | None:
        """See :meth:`Defense.entries_before`.

        The least size that is left of all tensors bounds the entries that were cut, unless all that
        is left was clipped; an entry of size gamma was at least as large.
        """
        tensors, largest = filtered(self.name, sent.tensors), self._largest(sent)
        cutoff = min(map(least_size, tensors.values()))
        cutoff = cutoff if cutoff < (1 - ROUNDING) * largest else math.inf
        found = dropped_entries(sent, dict.fromkeys(tensors, cutoff))
        for name, value in tensors.items():
            reached = (1 - ROUNDING) * largest - sent.margin(name)
            found[name] = found[name].between(value >= reached, reached, torch.inf)
            found[name] = found[name].between(value <= -reached, -torch.inf, -reached)
        return found

    def contradiction(self, sent: SentUpdate) -> str | None:
        """See :meth:`Defense.contradiction`."""
        tensors = filtered(self.name, sent.tensors)
        for name, value in tensors.items():
            over = value.abs() - (1 + ROUNDING) * self._largest(sent) - sent.margin(name)
            if bool((over > 0).any()):
                return (
                    f"`{name}` has entries up to {float(value.abs().max()):.3g}, and gamma leaves "
                    f"at most {self._largest(sent):.3g}"
                )
        zeros = share_of_zeros(tensors)
        if zeros < (1 - FEWER) * self.percentile / 100 and zeros < 1:
            return f"{zeros:.1%} of its entries are 0"
        return None

    def _largest(self, sent: SentUpdate) -> float:
        """The largest magnitude of an entry of an update of all steps."""
        return self.gamma * sent.steps
