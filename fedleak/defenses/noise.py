"""Noisy gradients."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedleak.defenses.base import Defense, Family, Outgoing, check_range, share_of_zeros, total_norm
from fedleak.updates.entries import Entries, SentUpdate
from fedleak.updates.files import Tensors

# Share of an update's entries that may be 0 by rounding where noise was added to all of them.
MOST_ZEROS = 0.01


@dataclass(kw_only=True, eq=False, repr=False)
class NoisyGradients(Defense):
    """Adds independent noise of mean 0 to every entry of the update.

    Args:
        sigma: standard deviation of the noise, at least 0; with ``relative``, the expected norm of
            the noise over the norm of the update.
        distribution: gaussian or laplace.
        relative: whether sigma is relative to the update's norm.

    Raises:
        BadInput: if sigma is negative.
    """

    name: ClassVar[str] = "noise"
    paper: ClassVar[str] = "Zhu et al., DLG, NeurIPS 2019, section 5.1, arXiv 1906.08935"
    family: ClassVar[Family] = "gradient perturbation"
    randomised: ClassVar[bool] = True
    uses_update_alone: ClassVar[bool] = True

    sigma: float = 1e-2
    distribution: Literal["gaussian", "laplace"] = "gaussian"
    relative: bool = False

    def __post_init__(self) -> None:
        check_range(self.name, "sigma", self.sigma, self.sigma >= 0, "at least 0")

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`."""
        standard_deviation = self.sigma
        if self.relative:
            entries = sum(value.numel() for value in outgoing.update.values())
            standard_deviation *= total_norm(outgoing.update) / math.sqrt(entries)
        return {
            name: value + standard_deviation * self._draw(value, generator)
            for name, value in outgoing.update.items()
        }

    def entries_before(self, sent: SentUpdate) -> dict[str, Entries] | None:
        """See :meth:`Defense.entries_before`: every entry has an error of the noise's deviation.

        Of noise relative to the update's norm, that of the sum of both tells it.
        """
        standard_deviation = self.sigma
        if self.relative:
            entries = sum(value.numel() for value in sent.tensors.values())
            norm = total_norm(sent.tensors) / math.sqrt(1 + self.sigma**2)
            standard_deviation *= norm / math.sqrt(entries)
        return {n: Entries.noisy(v, standard_deviation) for n, v in sent.tensors.items()}

    def contradiction(self, sent: SentUpdate) -> str | None:
        """See :meth:`Defense.contradiction`: with noise, no entry is 0."""
        zeros = share_of_zeros(sent.tensors)
        if self.sigma and zeros > MOST_ZEROS:
            return f"{zeros:.1%} of its entries are 0, which noise leaves no entry"
        return None

    def _draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Noise of standard deviation 1 with the shape of ``like``."""
        if self.distribution == "gaussian":
            return torch.randn(like.shape, generator=generator).to(like)
        # The difference of two exponentials is Laplace with scale 1, standard deviation sqrt(2).
        first, second = (torch.empty(like.shape).exponential_(generator=generator) for _ in "ab")
        return ((first - second) / math.sqrt(2)).to(like)
