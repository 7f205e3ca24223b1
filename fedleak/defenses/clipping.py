"""Clipping of the update's norm."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedleak.defenses.base import Defense, Family, Outgoing, check_range, scaled, total_norm
from fedleak.updates.entries import Entries, SentUpdate
from fedleak.updates.files import Tensors

# Relative rounding error of a norm.
ROUNDING = 1e-5


@dataclass(kw_only=True, eq=False, repr=False)
class Clipping(Defense):
    """Scales the update down so that its norm is at most a bound.

    By itself it keeps the direction, and so does not affect attacks with a cosine cost; it bounds
    the contribution of one client, which the noise of differential privacy requires.

    Args:
        max_norm: the bound, positive.

    Raises:
        BadInput: if the bound is not positive.
    """

    name: ClassVar[str] = "clipping"
    paper: ClassVar[str] = "McMahan et al., ICLR 2018, section 3, arXiv 1710.06963"
    family: ClassVar[Family] = "gradient clipping"
    uses_update_alone: ClassVar[bool] = True

    max_norm: float = 1.0

    def __post_init__(self) -> None:
        check_range(self.name, "max_norm", self.max_norm, self.max_norm > 0, "positive")

    def keeps_norm(self) -> bool:
        """See :meth:`Defense.keeps_norm`."""
        return True

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`."""
        norm = total_norm(outgoing.update)
        return scaled(outgoing.update, min(1.0, self.max_norm / norm) if norm else 1.0)

    def entries_before(self, sent: SentUpdate) -> dict[str, Entries] | None:
        """See :meth:`Defense.entries_before`: all as it was, up to one common factor."""
        return {}

    def contradiction(self, sent: SentUpdate) -> str | None:
        """See :meth:`Defense.contradiction`."""
        norm = total_norm(sent.tensors)
        allowed = ROUNDING * self.max_norm + total_norm(sent.rounding)
        if norm > self.max_norm + allowed:
            return f"its norm is {norm:.3g}, and clipping leaves at most {self.max_norm:.3g}"
        return None
