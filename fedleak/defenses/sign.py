"""Sign compression (signSGD)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedleak.defenses.base import Defense, Family, Outgoing
from fedleak.updates.files import Tensors


@dataclass(kw_only=True, eq=False, repr=False)
class Sign(Defense):
    """Sends the sign of every entry, times the mean magnitude of its tensor.

    Args:
        scaled: whether to multiply by the mean magnitude, so that the same learning rate can be
            used; otherwise entries are -1, 0 and 1.
    """

    name: ClassVar[str] = "sign"
    paper: ClassVar[str] = "Bernstein et al., signSGD, ICML 2018, arXiv 1802.04434"
    family: ClassVar[Family] = "gradient compression"
    uses_update_alone: ClassVar[bool] = True

    scaled: bool = True

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`."""
        return {
            name: value.sign() * (value.abs().mean() if self.scaled else 1)
            for name, value in outgoing.update.items()
        }
