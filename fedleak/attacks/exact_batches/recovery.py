"""The stages together: samples alone in a row, rows taken apart, signals, closure."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedleak.attacks.exact_batches.cascade import Candidates, Cascade
from fedleak.attacks.exact_batches.certificate import LEAST_SPARE, Tolerances, agreement
from fedleak.attacks.exact_batches.closure import close
from fedleak.attacks.exact_batches.descent import Descended, descend, signed
from fedleak.attacks.exact_batches.factorisation import Factors
from fedleak.attacks.exact_batches.pixel_levels import PixelLevels, judge
from fedleak.attacks.exact_batches.remainder import Remainder, Samples
from fedleak.attacks.exact_batches.row_integers import take_apart
from fedleak.attacks.exact_batches.two_state import Signals, TwoStates

# Numbers of one computation of random starts.
NUMBERS = 2**22
MOST_AT_ONCE = 64
# Shares of random softmaxes in the starts.
SPREADS = (0.0, 0.3, 1.0)
# Rows are taken apart if no more samples than these are expected; with fewer samples found, none
# can be expected, and these rows are tried.
MOST_EXPECTED, LEAST_FOUND, ROWS_WITHOUT_FOUND = 12.0, 5, 20
# Signals that are kept, for each direction of the columns' span: more are no samples'.
MOST_SIGNALS = 2
# Bound on the error of a sample, as a share of its norm, up to which it does not wait for signals.
PRECISE = 1e-4
# Of the tolerance of a signal, in float32 and in float64.
SIGNAL = (1e-3, 1e-6)


@dataclass
class Recovery:
    """Finds the samples of a batch, from what is left of its gradient.

    Args:
        remainder: what is left; samples are subtracted from it.
        bounds: lowest and highest valid input, normalised, ``(entries,)`` each.
        levels: levels of 8-bit pixels; None of other samples.
        shape: shape of a sample.
        head_bias: gradient of the head's bias, ``(classes,)``; None if it has none.
        generator: source of random draws.
        starts: highest number of random starts in succession that find nothing.
        rows: highest number of rows that are taken apart in succession and give nothing.
        progress: called from time to time with the number of samples found.

    Attributes:
        sources: stage -> number of samples that it found.
    """

    remainder: Remainder
    bounds: tuple[Tensor, Tensor]
    levels: PixelLevels | None
    shape: tuple[int, ...]
    head_bias: Tensor | None
    generator: torch.Generator
    starts: int
    rows: int
    progress: Callable[[int], None]
    sources: dict[str, int] = field(default_factory=dict)
    _tried: dict[int, Tensor] = field(default_factory=dict)
    _spreads: list[list[int]] = field(default_factory=lambda: [[1, 1] for _ in SPREADS])

    def run(self) -> None:
        """Go through the stages until all samples are found or no stage finds one."""
        found = -1
        while self._missing and len(self.remainder.found) > found:
            self._alone()
            found = len(self.remainder.found)
            for stage in (self._rows, self._signals):
                if self._missing and len(self.remainder.found) == found:
                    stage()

    @property
    def _missing(self) -> int:
        return self.remainder.missing

    def _add(self, stage: str, samples: Samples) -> None:
        self.remainder.add(samples)
        self._count(stage, len(samples))

    def _count(self, stage: str, number: int) -> None:
        if number:
            self.sources[stage] = self.sources.get(stage, 0) + number
            self.progress(len(self.remainder.found))

    # ------------------------------------------------------------------------ rows of one sample

    def _alone(self) -> None:
        self._count("alone in a row", self._cascade.run())

    @property
    def _cascade(self) -> Cascade:
        return Cascade(self.remainder, self.bounds, self.levels)

    # ------------------------------------------------------------------- rows of several samples

    def _rows(self) -> None:
        """Take rows apart, those with the fewest expected samples first, until one gives some."""
        remainder, levels = self.remainder, self.levels
        biased = remainder.network.has_bias(0)
        if levels is None or not (biased or levels.is_plain):
            return
        matrix, rounding = remainder.matrix(0), remainder.rounding(0)
        failed = 0
        for row in self._by_expected_samples().tolist():
            if failed >= self.rows:
                return
            value = matrix[row]
            known = self._tried.get(row)
            if known is not None and torch.allclose(known, value, rtol=1e-3, atol=0):
                continue
            self._tried[row] = value.clone()
            if float(value.abs().max()) <= 100 * float(rounding[row]):
                continue
            plain = value[:-1] * levels.std + levels.mean * value[-1] if biased else value
            failed += 1
            for parts in take_apart(plain, self.shape, float(rounding[row])):
                images = (parts.images - levels.mean) / levels.std
                exact, near = levels.round(images)
                candidates = Candidates(
                    exact[near], near[near], torch.full((int(near.sum()),), row),
                    parts.amplitudes[near], None,
                )  # fmt: skip
                found = self._cascade.certified(candidates)
                if len(found):
                    self._add("rows taken apart", found)
                    return

    def _by_expected_samples(self) -> Tensor:
        """Numbers of the first layer's rows in which few samples are expected, the fewest first.

        A unit is taken to be active for a remaining sample with the frequency that a normal
        distribution with the mean and the deviation of the found samples gives.
        """
        network, found = self.remainder.network, self.remainder.found
        if len(found) < LEAST_FOUND:
            sizes: Tensor = self.remainder.matrix(0).norm(dim=1)
            return sizes.argsort()[:ROWS_WITHOUT_FOUND]
        outputs = network.apply(0, found.inputs)
        shares = outputs.mean(dim=0) / outputs.std(dim=0).clamp_min(1e-12)
        expected: Tensor = self._missing * torch.special.ndtr(shares)
        order = expected.argsort()
        return order[expected[order] <= MOST_EXPECTED]

    # ------------------------------------------------------------------------------------ signals

    def _signals(self) -> None:
        """Random starts until a sample is found."""
        remainder, network = self.remainder, self.remainder.network
        last = network.hidden - 1
        factors = remainder.factors(last)
        rank = factors.rank
        units = int((factors.weights > 0).sum())
        biased = all(network.has_bias(layer) for layer in range(network.hidden))
        if not biased or rank == 0 or units < rank + network.classes + LEAST_SPARE:
            return
        single = last > 0
        states = self._states(factors.columns)
        at_once = max(1, min(MOST_AT_ONCE, self.starts, NUMBERS // factors.columns.numel()))
        kept: Signals | None = None
        failed, tried, most = 0, 0, MOST_SIGNALS * rank + MOST_AT_ONCE
        while failed < self.starts and (kept is None or len(kept) < most):
            spread = self._choose_spread()
            found = states.search(self._labels(at_once), SPREADS[spread])
            new = found if kept is None else states.joined(kept, found)
            fresh = len(new) - (0 if kept is None else len(kept))
            self._spreads[spread][0] += fresh
            self._spreads[spread][1] += at_once
            failed = 0 if fresh else failed + at_once
            kept = new
            if fresh == 0:
                continue
            # With more signals known, the others may be settled as well.
            again = len(kept) >= 1.2 * tried
            tried = len(kept) if again else tried
            if single:
                samples = self._descended(kept, again, fresh)
                if len(samples):
                    self._add("signals", samples)
                    return
            elif (again or len(kept) >= rank - network.classes + 2) and self._close(kept):
                return
        if kept is not None and not single:
            self._close(kept, last=True)

    def _choose_spread(self) -> int:
        rates = torch.tensor([found / tried for found, tried in self._spreads]) + 1e-3
        return int(torch.multinomial(rates, 1, generator=self.generator))

    def _labels(self, number: int) -> Tensor:
        """Labels of random starts, by what the gradient of the head's bias says is missing."""
        classes, scale = self.remainder.network.classes, self.remainder.network.scale
        if self.head_bias is None:
            weights = torch.ones(classes, dtype=torch.float64)
        else:
            left = self.head_bias / scale - self.remainder.found.residuals.sum(dim=0)
            weights = (self._missing / classes - left).clamp_min(0.2)
        return torch.multinomial(weights, number, replacement=True, generator=self.generator)

    def _descended(self, signals: Signals, again: bool, fresh: int) -> Samples:
        """The certified samples of all signals, or of those found last."""
        network, number = self.remainder.network, len(signals)
        first = 0 if again else number - fresh
        found = descend(self.remainder, signals, list(range(first, number)))
        if not found:
            return Samples.none(network.weights[0].shape[1], network.classes)
        return self._certified(Descended(*map(torch.cat, zip(*found, strict=True))))

    def _close(self, signals: Signals, *, last: bool = False) -> bool:
        """Samples from the signals of all that are left or of most, until none follows.

        Args:
            signals: distinct signals, in the basis of the factors' columns.
            last: whether no more signals will be found. If not, and some are missing, inexact
                samples are left until there are more.

        Returns:
            Whether there was one.
        """
        any_found = False
        while len(signals) and self._missing:
            found = self._certified(close(self.remainder, signals))
            if not last and len(signals) < self.remainder.factors(0).rank:
                found = found[found.bounds <= PRECISE * found.inputs.norm(dim=1)]
            if len(found) == 0:
                break
            before = self.remainder.factors(0)
            self._add("closure", found)
            any_found = True
            signals = self._still_there(signals, before)
        return any_found

    def _still_there(self, signals: Signals, before: Factors) -> Signals:
        """Signals, in the basis of what is left, without those of samples found since.

        Args:
            signals: signals in the basis of the factors before.
            before: of the last hidden layer.
        """
        columns = self.remainder.factors(self.remainder.network.hidden - 1).columns
        coordinates, residuals = signed(signals)
        labels = residuals.argmin(dim=1)
        scale = -residuals.gather(1, labels[:, None])
        moved = coordinates @ (before.columns.T @ columns)
        return self._states(columns).polish(moved / scale, residuals / scale, labels)

    def _states(self, columns: Tensor) -> TwoStates:
        network = self.remainder.network
        narrow = network.unit > torch.finfo(torch.float64).eps
        return TwoStates(columns, network.weights[-1], self.generator, SIGNAL[not narrow])

    def _certified(self, candidates: Descended) -> Samples:
        """Those samples whose own signals are those that the equations gave, and that agree."""
        read = candidates.inputs
        found, good, off = self._agreeing(candidates, torch.zeros(len(read), dtype=torch.bool))
        if self.levels is not None:
            exact, near = self.levels.round(read)
            inputs = torch.where(near[:, None], exact, read)
            rounded, holds, own = self._agreeing(candidates._replace(inputs=inputs), near)
            judged = judge(
                (inputs - read).norm(dim=1), found.bounds, found.unconditional, good,
                self.levels.span,
            )  # fmt: skip
            rounded = replace(rounded, bounds=judged.bounds, unconditional=judged.unconditional)
            stands = near & judged.rounded
            every, chosen = found + rounded, torch.arange(len(read)) + len(read) * stands
            found = every[chosen]
            good, off = torch.where(stands, holds, good), torch.where(stands, own, off)
        return self._cascade.distinct(found[good], off[good])

    def _agreeing(self, candidates: Descended, rounded: Tensor) -> tuple[Samples, Tensor, Tensor]:
        """Candidates with the bounds of what was read, whether they agree, and their errors."""
        remainder, network = self.remainder, self.remainder.network
        inputs = candidates.inputs
        trace = network.trace(inputs)
        own = network.residuals(trace.softmax, candidates.labels)
        signals = network.signals(trace.masks, own)
        size = candidates.signals.norm(dim=1)
        along = (signals[-1] * candidates.signals).sum(dim=1) / signals[-1].square().sum(dim=1)
        times = along.nan_to_num(0).round().clamp_min(1)
        off = (times[:, None] * signals[-1] - candidates.signals).norm(dim=1) / size
        agrees = agreement(
            remainder.factors(0, weighted=True),
            times[:, None] * signals[0],
            network.extended(0, inputs),
        )
        good = torch.zeros_like(rounded)
        for kind in (False, True):
            tolerances = Tolerances.of(network.unit, rounded=kind)
            holds = agrees.holds(tolerances) & (off <= tolerances.amplitude)
            good |= holds & (rounded == kind)
        mixture = self._cascade.mixture(off + agrees.columns + agrees.pairing, inputs)
        found = Samples(
            inputs, candidates.labels, times.long(), times[:, None] * own,
            candidates.bounds + mixture, remainder.worse() * candidates.bounds + mixture,
        )  # fmt: skip
        return found, good, off
