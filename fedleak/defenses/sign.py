"""Sign compression (signSGD)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedleak.defenses.base import Defense, Family, Outgoing
from fedleak.updates.entries import Entries, SentUpdate
from fedleak.updates.files import Tensors

# Relative difference of sizes that are alike.
ROUNDING = 1e-5


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

    def entries_before(self, sent: SentUpdate) -> dict[str, Entries] | None:
        """See :meth:`Defense.entries_before`: the sign bounds an entry from one side."""
        found = {}
        for name, value in sent.tensors.items():
            lowest = torch.where(value > 0, 0.0, -torch.inf)
            highest = torch.where(value < 0, 0.0, torch.inf)
            changed = value != 0
            found[name] = Entries.exactly(value).between(changed, lowest, highest)
        return found

    def contradiction(self, sent: SentUpdate) -> str | None:
        """See :meth:`Defense.contradiction`."""
        for name, value in sent.tensors.items():
            left = value[value != 0].abs()
            allowed = ROUNDING * left.max() + 2 * sent.margin(name).max() if left.numel() else 0
            if left.numel() and left.max() - left.min() > allowed:
                return f"the entries of `{name}` differ in size"
        return None
