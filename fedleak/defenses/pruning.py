"""Gradient pruning (sparsification)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.defenses.base import Defense, Family, Outgoing, check_range, dropped_entries
from fedleak.updates.entries import Entries, SentUpdate
from fedleak.updates.files import Tensors


@dataclass(kw_only=True, eq=False, repr=False)
class Pruning(Defense):
    """Sets the entries of smallest magnitude to zero, tensor by tensor.

    Args:
        ratio: share of every tensor's entries that is set to zero, from 0 to below 1.
        error_feedback: whether the client keeps the entries that were set to zero and adds them to
            its next update (deep gradient compression, Lin et al., ICLR 2018, section 3.1).

    Raises:
        BadInput: if the ratio is out of its range.
    """

    name: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "Zhu et al., DLG, NeurIPS 2019, section 5.2, arXiv 1906.08935"
    family: ClassVar[Family] = "gradient compression"
    uses_update_alone: ClassVar[bool] = True

    ratio: float = 0.9
    error_feedback: bool = False

    def __post_init__(self) -> None:
        check_range(self.name, "ratio", self.ratio, 0 <= self.ratio < 1, "from 0 to below 1")

    def keeps_norm(self) -> bool:
        """See :meth:`Defense.keeps_norm`; entries kept from earlier rounds may make it larger."""
        return not self.error_feedback

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`."""
        result = {}
        for name, value in outgoing.update.items():
            whole = value + memory[name] if name in memory else value
            result[name] = self._pruned(whole)
            if self.error_feedback:
                memory[name] = whole - result[name]
        return result

    def entries_before(self, sent: SentUpdate) -> dict[str, Entries] | None:
        """See :meth:`Defense.entries_before`.

        The least size that is left of a tensor bounds those that were cut. With error feedback, an
        update after the first round holds what was cut before, and nothing is known.
        """
        if self.error_feedback and sent.round > 1:
            return None
        return dropped_entries(sent, {n: least_size(v) for n, v in sent.tensors.items()})

    def contradiction(self, sent: SentUpdate) -> str | None:
        """See :meth:`Defense.contradiction`."""
        for name, value in sent.tensors.items():
            zeros = value.numel() - int(value.count_nonzero())
            if zeros < int(self.ratio * value.numel()):
                return f"{zeros / value.numel():.1%} of the entries of `{name}` are 0"
        return None

    def _pruned(self, value: Tensor) -> Tensor:
        cut = int(self.ratio * value.numel())
        flat = value.flatten().clone()
        flat[flat.abs().argsort(stable=True)[:cut]] = 0
        return flat.reshape(value.shape)


def least_size(value: Tensor) -> float:
    """The least magnitude of a tensor's entries that are not 0; infinite if all are 0."""
    left = value[value != 0].abs()
    return float(left.min()) if left.numel() else torch.inf
