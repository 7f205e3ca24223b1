"""Images whose pixels have one of 256 levels: rounding to the levels, and scale by the levels."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedleak.updates.knowledge import Knowledge

LEVELS = 255
# Largest distance of a pixel from a level, in levels, at which an image counts as one of levels.
NEAR = 0.25
# With fewer pixels, other numbers may lie near the levels by chance: 64 do with chance 2^-64.
LEAST_PIXELS = 64
# Pixels by which scales are preselected.
PRESELECTED = 48


class Judged(NamedTuple):
    """Rounded samples, judged by how far they lie from what was read.

    Args:
        rounded: whether the rounded sample stands, ``(samples,)``; else the one that was read.
        bounds: bounds on the norms of the errors, 0 where the sample is taken for an 8-bit image,
            ``(samples,)``.
        unconditional: the bounds where none is, ``(samples,)``.
    """

    rounded: Tensor
    bounds: Tensor
    unconditional: Tensor


def judge(
    distances: Tensor, bounds: Tensor, unconditional: Tensor, agrees: Tensor, span: float
) -> Judged:
    """Which rounded samples are taken for 8-bit images, and all bounds.

    A sample that lies farther from its levels than its reading can be wrong is no image of levels.

    Args:
        distances: norms of the changes by rounding, ``(samples,)``.
        bounds: of the errors of what was read, ``(samples,)``.
        unconditional: of the same if no sample found before is taken for an 8-bit image.
        agrees: whether what was read has a certificate too, ``(samples,)``.
        span: see :attr:`PixelLevels.span`.
    """
    explained = distances <= bounds
    moved = (distances + unconditional).clamp_max(span)
    rounded = explained | ~agrees
    return Judged(
        rounded,
        torch.where(explained, 0.0, torch.where(agrees, unconditional, moved)),
        torch.where(rounded, moved, unconditional),
    )


@dataclass(frozen=True)
class PixelLevels:
    """The values that the pixels of an 8-bit image have after normalisation.

    Args:
        mean: mean of each entry of a sample, ``(entries,)``, float64.
        std: standard deviation of each entry, ``(entries,)``, float64.
        narrow: whether the client computes in float32.
    """

    mean: Tensor
    std: Tensor
    narrow: bool

    def pixels(self, inputs: Tensor) -> Tensor:
        """Samples scaled back to levels, 0 to 255 but not rounded, ``(samples, entries)``."""
        return (inputs * self.std + self.mean) * LEVELS

    def inputs(self, levels: Tensor, *, narrow: bool) -> Tensor:
        """Normalised samples of whole levels, as computed in float32 or in float64.

        Args:
            levels: whole numbers from 0 to 255, ``(samples, entries)``.
            narrow: whether ``level / 255`` and the normalisation are computed in float32.
        """
        kind = torch.float32 if narrow else torch.float64
        scaled = levels.to(kind) / LEVELS
        return ((scaled - self.mean.to(kind)) / self.std.to(kind)).double()

    def round(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Samples with every pixel rounded to its level.

        Args:
            inputs: normalised samples, ``(samples, entries)``.

        Returns:
            The rounded samples, and whether each had all its pixels within a quarter of a level of
            levels in the range, ``(samples,)``.
        """
        pixels = self.pixels(inputs)
        levels = pixels.round().clamp(0, LEVELS)
        near = (pixels - levels).abs().amax(dim=1) <= NEAR
        exact = self.inputs(levels, narrow=True)
        if not self.narrow:
            # A float64 client may hold pixels that were computed in float32.
            wide = self.inputs(levels, narrow=False)
            narrow = 2 * (exact - inputs).norm(dim=1) < (wide - inputs).norm(dim=1)
            exact = torch.where(narrow[:, None], exact, wide)
        return exact, near

    @property
    def span(self) -> float:
        """Largest distance of two images, normalised."""
        return float(self.std.reciprocal().norm())

    def scaled(self, direction: Tensor) -> Tensor:
        """Images of whole levels that are multiples of a vector of numbers of one sign.

        Args:
            direction: ``(entries,)``; only where normalisation is the identity.

        Returns:
            The images, ``(found, entries)``, with the smallest factor first; none if no multiple
            has all its pixels near levels.
        """
        largest = direction[direction.abs().argmax()]
        shares = direction / largest
        order = torch.linspace(0, len(shares) - 1, min(PRESELECTED, len(shares))).long()
        highest = torch.arange(1, LEVELS + 1, dtype=direction.dtype)
        few = torch.outer(highest, shares[order])
        left = ((few - few.round()).abs() <= NEAR).all(dim=1).nonzero().flatten()
        if len(left) == 0:
            return direction[None][:0]
        pixels = torch.outer(highest[left], shares)
        exact, near = self.round((pixels / LEVELS - self.mean) / self.std)
        return exact[near]

    @property
    def is_plain(self) -> bool:
        """Whether inputs are pixels in [0, 1], with no normalisation."""
        return bool((self.mean == 0).all() and (self.std == 1).all())


def pixel_levels(knowledge: Knowledge, unit: float) -> PixelLevels | None:
    """The levels of 8-bit images; None of samples that are no images in [0, 1], or too small.

    Args:
        knowledge: gives shape, range, mean and standard deviation.
        unit: see :class:`fedleak.attacks.exact_batches.network.Network`.
    """
    shape = tuple(knowledge.input_shape)
    size = torch.Size(shape).numel()
    if len(shape) != 3 or size < LEAST_PIXELS or knowledge.value_range not in (None, (0, 1)):
        return None
    columns = (-1, *[1] * (len(shape) - 1))
    mean, std = (
        torch.tensor(values, dtype=torch.float64).reshape(columns).expand(shape).flatten()
        for values in (knowledge.mean, knowledge.std)
    )
    return PixelLevels(mean, std, unit > torch.finfo(torch.float64).eps)
