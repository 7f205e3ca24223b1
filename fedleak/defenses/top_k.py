"""Top-k sparsification: only the largest entries are sent."""

from dataclasses import dataclass
from typing import ClassVar

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


@dataclass(kw_only=True, eq=False, repr=False)
class TopK(Defense):
    """Sends the entries of largest magnitude of all tensors together, and 0 for the others.

    :class:`fedleak.defenses.Pruning` cuts the same share of every tensor; this one may cut all
    entries of one.

    Args:
        share: share of all entries that is sent, above 0 and at most 1; at least one entry is.
        error_feedback: whether the client keeps what it did not send and adds it to its next update
            (Stich et al. 2018, algorithm 1).

    Raises:
        BadInput: if the share is out of its range.
    """

    name: ClassVar[str] = "top_k"
    paper: ClassVar[str] = (
        "Stich et al., Sparsified SGD with Memory, NeurIPS 2018, arXiv 1809.07599"
    )
    family: ClassVar[Family] = "gradient compression"
    uses_update_alone: ClassVar[bool] = True

    share: float = 0.1
    error_feedback: bool = False

    def __post_init__(self) -> None:
        fits = 0 < self.share <= 1
        check_range(self.name, "share", self.share, fits, "above 0 and at most 1")

    def keeps_norm(self) -> bool:
        """See :meth:`Defense.keeps_norm`; entries kept from earlier rounds may make it larger."""
        return not self.error_feedback

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`.

        Raises:
            BadInput: if the update holds NaN or infinity.
        """
        whole = {
            name: value + memory[name] if name in memory else value
            for name, value in filtered(self.name, outgoing.update).items()
        }
        result = dict(outgoing.update)
        if not whole:
            return result
        every = sizes(whole)
        # By position, as entries of one size are not all sent where they would be too many.
        chosen = every.argsort(descending=True, stable=True)[: max(1, int(self.share * len(every)))]
        sent = torch.zeros_like(every, dtype=torch.bool)
        sent[chosen] = True
        parts = sent.split([value.numel() for value in whole.values()])
        for (name, value), part in zip(whole.items(), parts, strict=True):
            result[name] = torch.where(part.reshape(value.shape), value, 0.0)
            if self.error_feedback:
                memory[name] = value - result[name]
        return result

    def entries_before(self, sent: SentUpdate) -> dict[str, Entries] | None:
        """See :meth:`Defense.entries_before`.

        The least size that was sent bounds all others. With error feedback, an update after the
        first round holds what was not sent before, and nothing is known.
        """
        if self.error_feedback and sent.round > 1:
            return None
        tensors = filtered(self.name, sent.tensors)
        cutoff = min(map(least_size, tensors.values()))
        return dropped_entries(sent, dict.fromkeys(tensors, cutoff))

    def contradiction(self, sent: SentUpdate) -> str | None:
        """See :meth:`Defense.contradiction`."""
        tensors = filtered(self.name, sent.tensors)
        entries = sum(value.numel() for value in tensors.values())
        left = 1 - share_of_zeros(tensors)
        if round(left * entries) > max(1, int(self.share * entries)):
            return f"{left:.1%} of its entries are not 0"
        return None
