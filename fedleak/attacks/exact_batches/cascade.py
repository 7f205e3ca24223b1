"""Samples that are alone in a row of the gradient: read, certified, subtracted, and again."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedleak.attacks.exact_batches.certificate import Tolerances, agreement
from fedleak.attacks.exact_batches.client_residuals import fit_residuals
from fedleak.attacks.exact_batches.pixel_levels import PixelLevels, judge
from fedleak.attacks.exact_batches.remainder import Remainder, Samples

# A row counts from this many standard deviations of its rounding on.
LEAST_SIZE = 16.0
# How far outside of its range an input may lie, as a share of the range.
OUTSIDE = 1e-3
# Highest number of equal samples that is recognised.
MOST_EQUAL = 4
# Share of another sample in an input, at most, in units of the relative errors of its equations.
MIXTURE = 10.0
# Relative distance up to which two samples are the same.
SAME = 1e-3
# A row of several samples changes when one of them is subtracted, by more than this share.
CHANGED = 1e-3


class Candidates(NamedTuple):
    """Samples that a row of what is left of the first layer's gradient may hold.

    Args:
        inputs: ``(candidates, entries)``.
        rounded: whether the pixels were rounded to levels, ``(candidates,)``.
        rows: number of the row, ``(candidates,)``.
        amplitudes: factor of the sample in that row, ``(candidates,)``.
        readings: the inputs before they were rounded; None if no row gives a single one.
    """

    inputs: Tensor
    rounded: Tensor
    rows: Tensor
    amplitudes: Tensor
    readings: Tensor | None

    def only(self, chosen: Tensor) -> "Candidates":
        """Some of them.

        Args:
            chosen: which, ``(candidates,)``.
        """
        readings = None if self.readings is None else self.readings[chosen]
        inputs, rounded, rows, amplitudes = (value[chosen] for value in self[:4])
        return Candidates(inputs, rounded, rows, amplitudes, readings)


class Certified(NamedTuple):
    """Samples with the label and the count that agree best.

    Args:
        samples: with bounds that are yet to be set.
        least: share of the signal outside the columns' span; infinite of no sample of the batch.
        errors: of the equations together, relative.
    """

    samples: Samples
    least: Tensor
    errors: Tensor


@dataclass
class Cascade:
    """The cascade over rows in which one sample is left (Shariati and Meybodi 2026).

    Where unit j of the first layer is active for one remaining sample alone, row j of the layer's
    gradient is a multiple of its input: the bias's entry, or the levels of 8-bit pixels, give the
    factor. The sample's subtraction leaves other samples alone in their rows.

    Args:
        remainder: what is left of the gradient; samples are subtracted from it.
        bounds: lowest and highest valid input, normalised, ``(entries,)`` each.
        levels: levels of 8-bit pixels; None of other samples.
    """

    remainder: Remainder
    bounds: tuple[Tensor, Tensor]
    levels: PixelLevels | None

    def run(self) -> int:
        """Subtract samples until no row has one alone.

        Returns:
            Number of samples that were found.
        """
        before = len(self.remainder.found)
        seen = torch.zeros_like(self.remainder.gradients[0])
        while self.remainder.missing > 0:
            fit_residuals(self.remainder)
            matrix = self.remainder.matrix(0)
            changed = (matrix - seen).abs().amax(dim=1) > CHANGED * matrix.abs().amax(dim=1)
            seen = matrix.clone()
            large = matrix.abs().amax(dim=1) > LEAST_SIZE * self.remainder.rounding(0)
            rows = (changed & large).nonzero().flatten()
            found = self.certified(self.of_rows(matrix, rows))
            if len(found) == 0:
                break
            self.remainder.add(found)
        return len(self.remainder.found) - before

    def of_rows(self, matrix: Tensor, rows: Tensor) -> Candidates:
        """What rows hold if each holds a single sample.

        Args:
            matrix: what is left of the first layer's gradient.
            rows: numbers of the rows.
        """
        if self.remainder.network.has_bias(0):
            return self._by_bias(matrix[rows], rows)
        return self._by_levels(matrix[rows], rows)

    def _by_bias(self, values: Tensor, rows: Tensor) -> Candidates:
        factor = values[:, -1:]
        usable = factor.abs().flatten() > LEAST_SIZE * self.remainder.rounding(0)[rows]
        values, rows = values[usable], rows[usable]
        inputs = values[:, :-1] / values[:, -1:]
        low, high = self.bounds
        span = torch.where((high - low).isfinite(), high - low, 0.0)
        inside = ((inputs >= low - OUTSIDE * span) & (inputs <= high + OUTSIDE * span)).all(dim=1)
        inputs, rows = inputs[inside], rows[inside]
        rounded, readings = torch.zeros(len(rows), dtype=torch.bool), inputs
        if self.levels is not None:
            exact, rounded = self.levels.round(inputs)
            inputs = torch.where(rounded[:, None], exact, inputs)
        return self._candidates(inputs, rounded, rows, readings)

    def _by_levels(self, values: Tensor, rows: Tensor) -> Candidates:
        inputs, chosen, readings = [values[:0]], [rows[:0]], [values[:0]]
        low, high = values.amin(dim=1), values.amax(dim=1)
        largest = torch.maximum(low.abs(), high.abs())
        one_sign = torch.minimum(low.abs(), high.abs()) <= OUTSIDE * largest
        one_sign |= low * high >= 0
        if self.levels is not None and self.levels.is_plain:
            for value, row in zip(values[one_sign], rows[one_sign], strict=True):
                found = self.levels.scaled(value)
                inputs.append(found)
                chosen.append(row.expand(len(found)))
                readings.append(torch.outer(found @ value / value.square().sum(), value))
        every = torch.cat(inputs)
        rounded = torch.ones(len(every), dtype=torch.bool)
        return self._candidates(every, rounded, torch.cat(chosen), torch.cat(readings))

    def certified(self, candidates: Candidates) -> Samples:
        """Those candidates that have a certificate, each once.

        Args:
            candidates: what rows may hold.
        """
        best = self._best(candidates, loose=False)
        certified = best.least.isfinite()
        chosen, least = candidates.only(certified), best.least[certified]
        found, errors = best.samples[certified], best.errors[certified]
        bounds, unconditional = self._error_bounds(chosen, errors)
        found = replace(found, bounds=bounds, unconditional=unconditional)
        return self.distinct(self._judged(found, chosen), least)

    def _judged(self, found: Samples, chosen: Candidates) -> Samples:
        """Samples with the bounds of rounded ones, or what was read where it is no 8-bit image."""
        at = chosen.rounded.nonzero().flatten()
        if self.levels is None or len(at) == 0:
            return found
        bounds, unconditional, span = found.bounds.clone(), found.unconditional, self.levels.span
        unconditional = unconditional.clone()
        inputs, residuals = found.inputs.clone(), found.residuals.clone()
        if chosen.readings is None:
            bounds[at], unconditional[at] = 0.0, span
        else:
            rows, read = chosen.rows[at], chosen.readings[at]
            plain = self._candidates(read, torch.zeros(len(at), dtype=torch.bool), rows, read)
            best = self._best(plain, loose=True)
            own, without = self._error_bounds(plain, best.errors)
            same = (best.samples.labels == found.labels[at]) & (best.least.isfinite())
            same &= best.samples.counts == found.counts[at]
            strict = Tolerances.of(self.remainder.network.unit, rounded=False).amplitude
            own, without = (torch.where(same, b, torch.inf) for b in (own, without))
            distances = (read - found.inputs[at]).norm(dim=1)
            agrees = same & (best.errors <= strict)
            judged = judge(distances, own, without, agrees, span)
            bounds[at], unconditional[at] = judged.bounds, judged.unconditional
            back = ~judged.rounded
            inputs[at[back]] = read[back]
            residuals[at[back]] = best.samples.residuals[back]
        return replace(
            found, inputs=inputs, residuals=residuals, bounds=bounds, unconditional=unconditional
        )

    def _best(self, candidates: Candidates, *, loose: bool) -> Certified:
        """The label and the count with which each candidate agrees best.

        Args:
            candidates: what rows may hold.
            loose: whether the tolerances of rounded samples hold for all.
        """
        remainder, network = self.remainder, self.remainder.network
        trace = network.trace(candidates.inputs)
        inputs = network.extended(0, candidates.inputs)
        amplitude = candidates.amplitudes
        factors = remainder.factors(0, weighted=True)
        least = torch.full((len(inputs),), torch.inf, dtype=torch.float64)
        labels, counts = torch.zeros(2, len(inputs), dtype=torch.long)
        errors = torch.zeros_like(amplitude)
        residuals = torch.zeros(len(inputs), network.classes, dtype=torch.float64)
        for label in range(network.classes):
            named = torch.full((len(inputs),), label)
            own = network.residuals(trace.softmax, named)
            signals = network.signals(trace.masks, own)[0]
            entry = signals.gather(1, candidates.rows[:, None])[:, 0]
            times = (amplitude / entry).nan_to_num(0).round().clamp(1, MOST_EQUAL)
            off = ((amplitude - times * entry) / amplitude).abs()
            agrees = agreement(factors, times[:, None] * signals, inputs)
            good = torch.zeros_like(candidates.rounded)
            for rounded in (False, True):
                tolerances = Tolerances.of(network.unit, rounded=rounded)
                holds = agrees.holds(tolerances) & (off <= tolerances.amplitude)
                good |= holds & ((candidates.rounded | loose) == rounded)
            better = good & (agrees.columns < least)
            least = torch.where(better, agrees.columns, least)
            errors = torch.where(better, off + agrees.columns + agrees.pairing, errors)
            labels, counts = (
                torch.where(better, named, labels),
                torch.where(better, times.long(), counts),
            )
            residuals = torch.where(better[:, None], times[:, None] * own, residuals)
        unset = torch.full_like(least, torch.inf)
        found = Samples(candidates.inputs, labels, counts, residuals, unset, unset)
        return Certified(found, least, errors)

    def _error_bounds(self, candidates: Candidates, errors: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds on the norms of the errors, and those where none is taken for an 8-bit image.

        The row's error over the amplitude, and what another sample may have in the row.
        """
        size = candidates.inputs.shape[1] ** 0.5
        noise = LEAST_SIZE * self.remainder.rounding(0)[candidates.rows] * size
        mixture, amplitudes = self.mixture(errors, candidates.inputs), candidates.amplitudes.abs()
        own, without = (
            (noise + self.remainder.inherited(0, conditional=conditional)[candidates.rows])
            / amplitudes + mixture
            for conditional in (True, False)
        )  # fmt: skip
        return own, without

    def mixture(self, errors: Tensor, inputs: Tensor) -> Tensor:
        """Bound on the part of another sample in each input, by the errors of its equations.

        With the share c of another sample, an input's signal and amplitude are those of a sample of
        the batch up to about c, so that larger shares would have been seen.

        Args:
            errors: relative errors of the equations, ``(samples,)``.
            inputs: ``(samples, entries)``.
        """
        low, high = self.bounds
        span = (high - low).norm()
        size = span if bool(span.isfinite()) else 2 * inputs.norm(dim=1)
        bounds: Tensor = MIXTURE * errors * size
        return bounds

    def _candidates(
        self, inputs: Tensor, rounded: Tensor, rows: Tensor, readings: Tensor
    ) -> Candidates:
        """Candidates that are alone in their rows."""
        entering = self.remainder.network.extended(0, inputs)
        values = self.remainder.matrix(0)[rows]
        amplitudes = (values * entering).sum(dim=1) / entering.square().sum(dim=1)
        return Candidates(inputs, rounded, rows, amplitudes, readings)

    def distinct(self, found: Samples, error: Tensor) -> Samples:
        """Each sample once, in the form that agrees best; none that was found before.

        Args:
            found: certified samples.
            error: the smaller, the better one agrees, ``(samples,)``.
        """
        before = self.remainder.found.inputs
        kept: list[int] = []
        for at in error.argsort().tolist():
            others = torch.cat([before, found.inputs[kept]])
            near = (others - found.inputs[at]).norm(dim=1) <= SAME * found.inputs[at].norm()
            if not bool(near.any()):
                kept.append(at)
        found = found[torch.tensor(kept, dtype=torch.long)]
        return found[found.counts.cumsum(0) <= self.remainder.missing]
