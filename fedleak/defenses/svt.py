"""The sparse vector filter of NVFlare: a noisy choice of entries, each sent with noise."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedleak.defenses.base import (
    Defense,
    Family,
    Outgoing,
    check_range,
    filtered,
    share_of_zeros,
    sizes,
)
from fedleak.updates.entries import Entries, SentUpdate
from fedleak.updates.files import Tensors

# Relative rounding error of an entry that was clipped.
ROUNDING = 1e-5


@dataclass(kw_only=True, eq=False, repr=False)
class SVT(Defense):
    """Sends entries that pass a noisy threshold, clipped and with noise, and 0 for the others.

    As NVFlare's ``SVTPrivacy`` does, of the change per local step of n entries in all, of which
    ``c = ceil(fraction n)`` are wanted (the sparse vector technique, algorithm 1 of Lyu et al.
    with ``T = tau`` and a sensitivity of ``2 gamma`` at most). With Lap(b) a Laplace distribution
    of scale b and mean 0:

    - The threshold is ``tau + Lap(2 gamma / epsilon)``.
    - Of each entry the magnitude, at most gamma, plus ``Lap(4 gamma c / (epsilon (2 c)^(2/3)))`` is
      compared with it. Entries below it are compared again, with new noise, until c have passed.
    - Of those that passed, c are drawn, by default with replacement, so that fewer are sent.
    - Each gets noise ``Lap(2 gamma / noise_var)`` and is clipped to +-gamma, all others become 0.

    Of fedsgd the gradient takes the place of the change, as with a learning rate of 1. The epsilon
    is that of the threshold alone, not of what is sent, and a run counts it as none.

    Args:
        fraction: share of the entries that is wanted, above 0 and at most 1.
        epsilon: privacy parameter of the threshold, positive.
        noise_var: privacy parameter of an entry that is sent, positive: despite its name the noise
            falls with it.
        gamma: largest magnitude of an entry per local step, positive.
        tau: the threshold, at least 0.
        replace: whether the entries that are sent are drawn with replacement.
        clip: whether entries are clipped ``after`` the noise was added, as up to NVFlare 2.7, or
            ``before``, so that noise leads beyond gamma.

    Raises:
        BadInput: if a value is out of its range.
    """

    name: ClassVar[str] = "svt"
    paper: ClassVar[str] = (
        "Lyu et al., Understanding the Sparse Vector Technique, VLDB 2017, arXiv 1603.01699, as in "
        "NVFlare, https://nvflare.readthedocs.io"
    )
    family: ClassVar[Family] = "differential privacy"
    randomised: ClassVar[bool] = True
    uses_update_alone: ClassVar[bool] = True

    fraction: float = 0.1
    epsilon: float = 0.1
    noise_var: float = 0.1
    gamma: float = 1e-5
    tau: float = 1e-6
    replace: bool = True
    clip: Literal["after", "before"] = "after"

    def __post_init__(self) -> None:
        fits = 0 < self.fraction <= 1
        check_range(self.name, "fraction", self.fraction, fits, "above 0 and at most 1")
        for name in ("epsilon", "noise_var", "gamma"):
            value = getattr(self, name)
            check_range(self.name, name, value, 0 < value < math.inf, "positive")
        check_range(self.name, "tau", self.tau, 0 <= self.tau < math.inf, "at least 0")
        fits = self.clip in ("after", "before")
        check_range(self.name, "clip", self.clip, fits, "after or before")

    def protect(
        self, outgoing: Outgoing, *, generator: torch.Generator, memory: Tensors
    ) -> Tensors:
        """See :meth:`Defense.protect`.

        Raises:
            BadInput: if the update holds NaN or infinity.
        """
        steps = outgoing.steps
        changed = filtered(self.name, outgoing.update)
        result = dict(outgoing.update)
        if not changed:
            return result
        every = torch.cat([value.flatten().double() for value in changed.values()]) / steps
        chosen = self._chosen(every.abs().clamp(max=self.gamma), generator)
        noise = _laplace(len(chosen), 2 * self.gamma / self.noise_var, generator)
        picked, gamma = every[chosen], self.gamma
        if self.clip == "after":
            picked = (picked + noise).clamp(-gamma, gamma)
        else:
            picked = picked.clamp(-gamma, gamma) + noise
        sent = torch.zeros_like(every)
        sent[chosen] = picked
        parts = (steps * sent).split([value.numel() for value in changed.values()])
        for (name, value), part in zip(changed.items(), parts, strict=True):
            result[name] = part.reshape(value.shape).to(value)
        return result

    def _chosen(self, magnitudes: Tensor, generator: torch.Generator) -> Tensor:
        """Positions of the entries that are sent, each once."""
        wanted = math.ceil(self.fraction * len(magnitudes))
        threshold = self.tau + float(_laplace(1, 2 * self.gamma / self.epsilon, generator))
        query = 4 * self.gamma * wanted / (self.epsilon * (2 * wanted) ** (2 / 3))
        passed = torch.zeros_like(magnitudes, dtype=torch.bool)
        while int(passed.sum()) < wanted:
            noisy = magnitudes + _laplace(len(magnitudes), query, generator)
            passed |= noisy >= threshold
        candidates = passed.nonzero().flatten()
        if self.replace:
            drawn = torch.randint(len(candidates), (wanted,), generator=generator)
        else:
            drawn = torch.randperm(len(candidates), generator=generator)[:wanted]
        chosen: Tensor = candidates[drawn].unique()
        return chosen

    def entries_before(self, sent: SentUpdate) -> dict[str, Entries] | None:
        """See :meth:`Defense.entries_before`.

        The expectation of what is sent of a small entry is ``1 - exp(-gamma / b)`` times the entry,
        b being the noise's scale, and its standard deviation that of noise clipped to +-gamma. Of
        an entry of 0 nothing is known.
        """
        scale, gamma = 2 * self.gamma / self.noise_var, self.gamma
        slope, deviation = 1.0, math.sqrt(2) * scale
        if self.clip == "after":
            ratio = gamma / scale
            slope = -math.expm1(-ratio)
            # The mean square of Laplace noise within +-gamma, and the rest at gamma.
            within = 2 * scale**2 * (1 - math.exp(-ratio) * (1 + ratio + ratio**2 / 2))
            deviation = math.sqrt(within + gamma**2 * math.exp(-ratio))
        found = {}
        for name, value in filtered(self.name, sent.tensors).items():
            noisy = Entries.noisy(value / slope, sent.steps * deviation / slope)
            found[name] = noisy.between(value == 0, -torch.inf, torch.inf)
        return found

    def contradiction(self, sent: SentUpdate) -> str | None:
        """See :meth:`Defense.contradiction`."""
        tensors = filtered(self.name, sent.tensors)
        every = sizes(tensors)
        left, wanted = 1 - share_of_zeros(tensors), math.ceil(self.fraction * len(every))
        if round(left * len(every)) > wanted:
            return f"{left:.1%} of its entries are not 0"
        largest = self.gamma * sent.steps
        margin = max(float(sent.margin(name).max()) for name in tensors)
        if self.clip == "after" and float(every.max()) > (1 + ROUNDING) * largest + margin:
            return f"it has entries up to {float(every.max()):.3g}, gamma leaves {largest:.3g}"
        return None


def _laplace(number: int, scale: float, generator: torch.Generator) -> Tensor:
    """Draws of a Laplace distribution of mean 0, in float64."""
    first, second = (
        torch.empty(number, dtype=torch.float64).exponential_(generator=generator) for _ in "ab"
    )
    return scale * (first - second)
