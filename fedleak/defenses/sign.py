"""The sign of the gradient alone."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedleak.defenses.base import Defense, Family, Outgoing
from fedleak.updates.files import Tensors


@dataclass(kw_only=True, eq=False, repr=False)
class Sign(Defense):
    """Sends one bit an entry: its sign, times the tensor's mean magnitude.

    Args:
        scaled: whether to multiply by the mean magnitude, which keeps a learning rate valid; else
            entries are -1, 0 and 1.
    """

    name: ClassVar[str] = "sign"
    paper: ClassVar[str] = "Bernstein et al., signSGD, ICML 2018, arXiv 1802.04434"
    family: ClassVar[Family] = "gradient compression"

    scaled: bool = True

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`."""
        return {
            name: value.sign() * (value.abs().mean() if self.scaled else 1)
            for name, value in outgoing.update.items()
        }
