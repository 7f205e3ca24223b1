"""Batches of a network with a bottleneck: samples first, then each one's signals and noise.

No signal can be computed from a sample, as the noise acts on it. So samples are found from the rows
of the gradients alone, and a sample's signals from the zeros of its ReLUs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedleak.attacks.exact_batches.cascade import LEAST_SIZE, Cascade
from fedleak.attacks.exact_batches.certificate import LEAST_SPARE, Tolerances, agreement
from fedleak.attacks.exact_batches.descent import Solution, sample_below, settled, spread_of
from fedleak.attacks.exact_batches.pixel_levels import PixelLevels, judge
from fedleak.attacks.exact_batches.random_head import RandomHead, Restored
from fedleak.attacks.exact_batches.remainder import Remainder, Samples

# A signal is settled if the second smallest singular value of its equations is this many times the
# smallest.
SETTLED = 10.0
# Samples alone in a row that are tried in a round.
MOST_ALONE = 64


class NoisyRemainder(Remainder):
    """What is left of the gradients of the hidden layers and of the encoder.

    Attributes:
        shares: relative error of each found sample's signals, ``(samples,)``.
    """

    shares: Tensor = torch.empty(0, dtype=torch.float64)

    def inherited(self, layer: int, *, conditional: bool = True) -> Tensor:
        """See :meth:`Remainder.inherited`; a signal comes with the error of its equations.

        Args:
            layer: number of a layer.
            conditional: see there.
        """
        errors = self.found.bounds if conditional else self.found.unconditional
        own = errors + self.shares * self.entering(layer).norm(dim=1)
        bounds: Tensor = self.signals(layer).abs().T @ own
        return bounds


class _Found(NamedTuple):
    """A certified sample, the errors of its equations, and of its signal."""

    samples: Samples
    errors: Tensor
    shares: Tensor


@dataclass
class NoisyRecovery:
    """Finds samples, labels and noise of a batch of a network with a bottleneck.

    Args:
        head: the network.
        remainder: what is left; samples are subtracted from it.
        bounds: lowest and highest valid input, normalised, ``(entries,)`` each.
        levels: levels of 8-bit pixels; None of other samples.
        generator: source of random draws.
        starts: highest number of random starts in succession that find nothing.
        progress: called from time to time with the number of samples found.

    Attributes:
        sources: stage -> number of samples that it found.
    """

    head: RandomHead
    remainder: NoisyRemainder
    bounds: tuple[Tensor, Tensor]
    levels: PixelLevels | None
    generator: torch.Generator
    starts: int
    progress: Callable[[int], None]
    sources: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        """Find one sample after the other until all are found or no stage finds one."""
        while self.remainder.missing:
            if not (self._by_zeros() or self._alone()):
                return

    def restored(self) -> Restored:
        """Noise and labels of the found samples."""
        found = self.remainder.found
        return self.head.restored(self._encoded(found.inputs), found.residuals)

    def _encoded(self, inputs: Tensor) -> Tensor:
        network = self.head.network
        return network.apply(network.hidden, network.trace(inputs).inputs[-1])

    def _by_zeros(self) -> bool:
        """A sample from the zeros of an input of the encoder.

        The input is an output of a ReLU and lies in the rows' span of the encoder's gradient. From
        random weights of its entries, reweighted least squares leads to such a vector of the span.
        """
        remainder = self.remainder
        encoder = remainder.network.hidden
        factors = remainder.factors(encoder)
        if factors.rank == 0:
            return False
        spread = spread_of(remainder, factors, encoder)
        for at in range(self.starts):
            entries = factors.rows.shape[1] - 1
            random = torch.rand(entries, generator=self.generator, dtype=torch.float64)
            # The entry of the bias is 1.
            start = None if at == 0 else (random < 0.5).double() + 1e-2
            hidden = settled(factors.rows, factors.rows[:, -1], spread, start)
            if not hidden.bound < torch.inf:
                continue
            entering = Solution(hidden.value[:-1], hidden.bound, hidden.zeros)
            sample = sample_below(remainder, encoder, entering)
            if sample is not None and self._add("zeros of a layer", sample):
                return True
        return False

    def _alone(self) -> bool:
        """A sample that is alone in a row of the first layer's gradient."""
        remainder = self.remainder
        matrix, rounding = remainder.matrix(0), remainder.rounding(0)
        large = matrix.abs().amax(dim=1) > LEAST_SIZE * rounding
        found = self._cascade.of_rows(matrix, large.nonzero().flatten())
        size = found.inputs.shape[1] ** 0.5
        noise = (LEAST_SIZE * rounding * size + remainder.inherited(0))[found.rows]
        bounds = noise / found.amplitudes.abs()
        assert found.readings is not None  # of rows with a bias
        for at in bounds.argsort()[:MOST_ALONE].tolist():
            sample = Solution(found.readings[at], float(bounds[at]))
            if self._add("alone in a row", sample):
                return True
        return False

    @property
    def _cascade(self) -> Cascade:
        return Cascade(self.remainder, self.bounds, self.levels)

    def _add(self, stage: str, sample: Solution) -> bool:
        """Subtract a sample if it is certified; whether it was."""
        read = sample.value[None]
        found = self._agreeing(read, sample.bound, rounded=False)
        if self.levels is not None:
            exact, near = self.levels.round(read)
            rounded = self._agreeing(exact, sample.bound, rounded=True) if bool(near) else None
            if rounded is not None:
                found = self._judged(found, rounded, (exact - read).norm(dim=1))
        if found is None:
            return False
        samples = self._cascade.distinct(found.samples, found.errors)
        if len(samples) == 0:
            return False
        self.remainder.shares = torch.cat([self.remainder.shares, found.shares])
        self.remainder.add(samples)
        self.sources[stage] = self.sources.get(stage, 0) + 1
        self.progress(len(self.remainder.found))
        return True

    def _judged(self, read: "_Found | None", rounded: "_Found", distance: Tensor) -> "_Found":
        """The rounded sample with its bounds, or what was read."""
        assert self.levels is not None
        own = rounded if read is None else read
        unset, agrees = torch.full_like(distance, torch.inf), torch.tensor([read is not None])
        bounds = unset if read is None else own.samples.bounds
        without = unset if read is None else own.samples.unconditional
        judged = judge(distance, bounds, without, agrees, self.levels.span)
        chosen = rounded if bool(judged.rounded) else own
        samples = replace(chosen.samples, bounds=judged.bounds, unconditional=judged.unconditional)
        return chosen._replace(samples=samples)

    def _agreeing(self, inputs: Tensor, bound: float, *, rounded: bool) -> "_Found | None":
        """A sample with the bounds of what was read, if it is certified."""
        remainder, network = self.remainder, self.head.network
        trace = network.trace(inputs)
        signal = encoder_signal(remainder, inputs)
        if signal is None:
            return None
        restored = self.head.restored(self._encoded(inputs), signal)
        agrees = agreement(
            remainder.factors(0, weighted=True),
            network.signals(trace.masks, signal)[0],
            network.extended(0, inputs),
        )
        tolerances = Tolerances.of(network.unit, rounded=rounded)
        if not bool(agrees.holds(tolerances) & (restored.errors <= tolerances.amplitude)):
            return None
        errors = restored.errors + agrees.columns + agrees.pairing
        mixture = self._cascade.mixture(errors, inputs)
        ones = torch.ones(1, dtype=torch.long)
        found = Samples(
            inputs, restored.labels, ones, signal,
            bound + mixture, remainder.worse() * bound + mixture,
        )  # fmt: skip
        return _Found(found, errors, agrees.columns)


def encoder_signal(remainder: Remainder, inputs: Tensor) -> Tensor | None:
    """The gradient of the loss in the encoder's output for a sample, from its zeros.

    On the last hidden layer a signal lies in the columns' span and is 0 where the unit is inactive
    for the sample: with fewer samples than such units, it is the only one, up to a factor. The
    sample's input lies in the rows' span, and the pairing of the two is 1, which gives the factor.
    Where the units are active, the signal is linear in that of the encoder, which lies in the
    columns' span of the encoder's gradient.

    Args:
        remainder: what is left of the gradients, with the encoder's.
        inputs: the sample, ``(1, entries)``.

    Returns:
        ``(1, 2 K)``; None where the equations do not settle it.
    """
    network = remainder.network
    last = network.hidden - 1
    trace = network.trace(inputs)
    factors, encoder = remainder.factors(last), remainder.factors(network.hidden)
    active = trace.masks[last][0] > 0
    zeros = factors.columns[~active]
    if factors.rank == 0 or encoder.rank == 0:
        return None
    if len(zeros) < factors.rank + LEAST_SPARE or int(active.sum()) < encoder.rank + LEAST_SPARE:
        return None
    _, sizes, axes = torch.linalg.svd(zeros, full_matrices=False)
    if len(sizes) > 1 and not float(sizes[-2]) > SETTLED * float(sizes[-1]):
        return None
    coordinates = axes[-1]
    entering = network.extended(last, trace.inputs[last])[0]
    pairing = coordinates @ ((factors.rows @ entering) / factors.sizes)
    signal = factors.columns @ coordinates / pairing
    system = (network.weights[-1].T @ encoder.columns)[active]
    fit = torch.linalg.lstsq(system, signal[active, None], driver="gelsd").solution[:, 0]
    found = (encoder.columns @ fit)[None]
    return found if bool(found.isfinite().all()) else None
