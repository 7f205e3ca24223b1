"""Clipping of the update's norm."""

from typing import ClassVar

import torch

from fedleak.defenses.base import Defense, Outgoing, check_range, scaled, total_norm
from fedleak.updates.files import Tensors


class Clipping(Defense):
    """Scales the update down so that its norm is at most a bound.

    By itself it keeps the direction, and so hides nothing from a cosine cost; it bounds what one
    client can contribute, which noise needs.

    Args:
        max_norm: the bound, positive.

    Raises:
        BadInput: if the bound is not positive.
    """

    name: ClassVar[str] = "clipping"
    paper: ClassVar[str] = "McMahan et al., ICLR 2018, section 3, arXiv 1710.06963"

    def __init__(self, *, max_norm: float = 1.0) -> None:
        check_range(self.name, "max_norm", max_norm, max_norm > 0, "positive")
        self.max_norm = max_norm

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`."""
        norm = total_norm(outgoing.update)
        return scaled(outgoing.update, min(1.0, self.max_norm / norm) if norm else 1.0)
