"""Exact batches: whole batches out of one gradient, each sample with a certificate."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.attacks.base import (
    Attack,
    Family,
    Problem,
    Progress,
    Reconstruction,
    Report,
)
from fedleak.attacks.exact_batches.network import Network, read_network
from fedleak.attacks.exact_batches.noisy_recovery import NoisyRecovery, NoisyRemainder
from fedleak.attacks.exact_batches.pixel_levels import pixel_levels
from fedleak.attacks.exact_batches.random_head import RandomHead, read_random_head
from fedleak.attacks.exact_batches.recovery import Recovery
from fedleak.attacks.exact_batches.remainder import Remainder, Samples
from fedleak.attacks.labels import recover_labels
from fedleak.errors import BadInput, require
from fedleak.models.noise import noise_slots
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.loss_probe import LossProbe

# Random starts for a sample's zeros: the first one finds a sample, or hardly any does.
MOST_ZEROS = 6
# Share of a sample's norm by which clipping to the valid range moves it, at most, by rounding.
CLIPPED = 1e-5


@dataclass(kw_only=True, eq=False, repr=False)
class ExactBatch(Attack):
    """Recovers the samples of a batch by linear algebra and certifies each of them.

    For networks of linear layers with ReLU between them and a cross entropy, and one gradient or
    one step of SGD; of several steps nothing is certified but where the weights hardly move. The
    gradient of a
    hidden layer is ``sum_i d_i (h_i, 1)^T`` over the samples, with the layer's input h and the
    sample's signal d, the gradient of the loss with respect to the layer's output. Samples are
    found one after the other and subtracted from the gradient that came, by four stages, of which
    the first that finds one is followed by the first again:

    - A unit of the first layer that is active for one remaining sample alone: its row of the
      gradient is a multiple of the sample (Shariati and Meybodi 2026; Fowl et al. 2022).
    - A unit that is active for two to four remaining samples of 8-bit pixels: integer relations
      between differences of neighbouring pixels give the samples
      (:mod:`fedleak.attacks.exact_batches.row_integers`).
    - A whole signal of the last hidden layer: each entry is 0 or the head's column times the
      sample's residual, softmax minus one-hot label, a mixture of two linear regressions
      (:mod:`fedleak.attacks.exact_batches.two_state`). Behind one hidden layer or more, the zeros
      of the ReLU then settle that layer's input and the sample
      (:mod:`fedleak.attacks.exact_batches.descent`).
    - All remaining signals of a network with one hidden layer together, or most of them
      (:mod:`fedleak.attacks.exact_batches.closure`).

    Behind the hidden layers there may be a variational bottleneck (PRECODE). Then samples are found
    from the zeros of the encoder's input, and each one's signals, label and noise follow
    (:mod:`fedleak.attacks.exact_batches.noisy_recovery`).

    8-bit images are rounded to their levels where every pixel is near one, so that no error is
    passed on. A sample is certified if the gradient that the model computes for it lies in the span
    of the columns of what is left, its input in the span of the rows, their pairing is 1, so that
    subtracting it lowers the rank by one, and its signal is the one that was found, each up to
    rounding (:mod:`fedleak.attacks.exact_batches.certificate`). The result has a bound on each
    certified sample's error. A sample that seems to occur more than once is not certified, as it
    may be the mean of near ones. What else is not certified is a guess, the mean of what is left;
    it stands last, with a bound of infinity, unless the labels were told, in whose order the
    samples stand.

    The cost is the share of the norm of the first layer's gradient that is left.

    Args:
        starts: highest number of random starts for signals in succession that find nothing, at
            least 0.
        rows: highest number of rows in succession that are taken apart and give nothing, at least
            0.
        levels: whether images are rounded to 8-bit levels where they are near.
        accuracy: largest bound on the norm of a certified sample's error, on the scale before
            normalisation, positive.

    Raises:
        BadInput: if a value is out of its range.
    """

    name: ClassVar[str] = "exact_batch"
    paper: ClassVar[str] = (
        "this project, after Shariati and Meybodi 2026, and SPEAR, NeurIPS 2024, "
        "https://arxiv.org/abs/2403.03945"
    )
    family: ClassVar[Family] = "analytic"
    needs: ClassVar[str] = "one gradient; linear layers with ReLU; cross entropy"
    restores_noise: ClassVar[bool] = True
    needs_first_linear: ClassVar[bool] = True
    boxed: ClassVar[bool] = True

    starts: int = 2000
    rows: int = 300
    levels: bool = True
    accuracy: float = 0.01

    def __post_init__(self) -> None:
        for name in ("starts", "rows"):
            count = getattr(self, name)
            require(count >= 0, f"Expected `{name}` to be at least 0, got {count}.")
        require(
            0 < self.accuracy < math.inf,
            f"Expected `accuracy` to be a positive number, got {self.accuracy}.",
        )

    def refuses(self, knowledge: Knowledge) -> str | None:
        """See :meth:`Attack.refuses`."""
        reason = super().refuses(knowledge)
        if reason is not None:
            return reason
        found = _read(knowledge)
        if isinstance(found, str):
            return (
                f"{self.name} needs a cross entropy of linear layers with ReLU between, but {found}"
            )
        return None

    def run(self, problem: Problem, report: Report) -> Reconstruction:
        """See :meth:`Attack.run`.

        Raises:
            BadInput: if the update tells the gradient up to bounds alone.
        """
        facts = replace(problem.knowledge, model=problem.model)
        read = _read(facts, problem.loss)
        assert not isinstance(read, str)  # by :meth:`refuses`
        require(
            not problem.deviation,
            f"Expected a gradient for {self.name}, got a step of {facts.local.optimizer} that "
            "tells it up to bounds alone.",
        )
        require(
            not problem.entries,
            f"Expected a gradient for {self.name} whose entries came as they were, got one that a "
            "told defence has changed.",
        )
        if isinstance(read, RandomHead):
            recovery: Recovery | NoisyRecovery = self._noisy(problem, read, report)
        else:
            recovery = self._plain(problem, read, report)
        recovery.run()
        return self._result(problem, recovery)

    def _plain(self, problem: Problem, network: Network, report: Report) -> Recovery:
        facts, generator = problem.knowledge, problem.generator
        remainder = Remainder(
            network, network.gradients(problem.gradient), facts.num_samples, generator,
            rounding_of_weights(problem, network, network.hidden),
        )  # fmt: skip
        return Recovery(
            remainder=remainder,
            bounds=_flat_bounds(facts),
            levels=pixel_levels(facts, network.unit) if self.levels else None,
            shape=tuple(facts.input_shape),
            head_bias=_head_bias(problem, network),
            generator=generator,
            starts=self.starts,
            rows=self.rows,
            progress=_progress(report, facts.num_samples),
        )

    def _noisy(self, problem: Problem, head: RandomHead, report: Report) -> NoisyRecovery:
        facts, network = problem.knowledge, head.network
        remainder = NoisyRemainder(
            network, network.gradients(problem.gradient, head=True), facts.num_samples,
            problem.generator, rounding_of_weights(problem, network, network.hidden + 1),
        )  # fmt: skip
        return NoisyRecovery(
            head=head,
            remainder=remainder,
            bounds=_flat_bounds(facts),
            levels=pixel_levels(facts, network.unit) if self.levels else None,
            generator=problem.generator,
            starts=min(self.starts, MOST_ZEROS),
            progress=_progress(report, facts.num_samples),
        )

    def _result(self, problem: Problem, recovery: Recovery | NoisyRecovery) -> Reconstruction:
        facts, remainder = problem.knowledge, recovery.remainder
        found, missing = _with_true_bounds(recovery), remainder.missing
        # Samples of one label that activate the same units have nearly proportional gradients:
        # their mean, taken as often, differs from them by second order, which rounding hides. Where
        # they differ in a few pixels it may lie at 8-bit levels too.
        repeated = found.counts > 1
        found = replace(found, bounds=torch.where(repeated, torch.inf, found.bounds))
        largest = float(torch.tensor(facts.std).max())
        certified = found.bounds * largest <= self.accuracy
        noise = _noise_of(recovery)
        order = torch.cat([certified.nonzero(), (~certified).nonzero()]).flatten()
        found, noise = found[order], noise[order]
        bounds = torch.where(found.bounds * largest <= self.accuracy, found.bounds, torch.inf)
        inputs = found.inputs.repeat_interleave(found.counts, dim=0)
        labels = found.labels.repeat_interleave(found.counts)
        bounds = bounds.repeat_interleave(found.counts)
        rank = remainder.rank() if missing or bool(repeated.any()) else 0
        if missing:
            guess = _mean_left(remainder, _flat_bounds(facts))
            inputs = torch.cat([inputs, guess.expand(missing, -1)])
            labels = torch.cat([labels, _labels_left(problem, labels)])
            bounds = torch.cat([bounds, bounds.new_full((missing,), torch.inf)])
            noise = torch.cat([noise, noise.new_zeros(missing, noise.shape[1])])
        if facts.labels is not None:
            order = order_of(labels, facts.labels.cpu())
            inputs, labels, bounds = inputs[order], labels[order], bounds[order]
            noise = noise[order]
        low, high = _flat_bounds(facts)
        clipped = torch.minimum(torch.maximum(inputs, low), high)
        moved = (clipped - inputs).norm(dim=1)
        outside = bounds.isfinite() & (moved > CLIPPED * inputs.norm(dim=1))
        bounds = torch.where(outside, torch.inf, bounds)
        like = problem.gradient[f"{remainder.network.names[0]}.weight"]
        whole = remainder.gradients[0].norm().clamp_min(1e-300)
        left = float(remainder.matrix(0).norm() / whole)
        return Reconstruction(
            inputs=clipped.reshape(problem.batch_shape).to(like),
            labels=labels.to(like.device),
            noise={
                slot: noise.reshape(shape).to(like) for slot, shape in problem.noise_shapes.items()
            },
            costs=[(0, left)],
            findings=(
                *_about_update(problem, remainder.network),
                *_about_labels(facts, labels[bounds.isfinite()]),
                *_about_range(int(outside.sum())),
                *_findings(recovery, bounds, rank, _about_levels(found, self.accuracy / largest)),
                *_about_repeated(int(repeated.sum())),
            ),
            error_bounds=bounds,
        )


def _read(knowledge: Knowledge, probe: LossProbe | None = None) -> Network | RandomHead | str:
    """The model as one of the two kinds of networks, or why it is none."""
    if noise_slots(knowledge.model):
        return read_random_head(knowledge, probe)
    return read_network(knowledge, probe)


def _noise_of(recovery: Recovery | NoisyRecovery) -> Tensor:
    """Noise of the found samples, ``(samples, K)``; with no columns where none is drawn."""
    if isinstance(recovery, NoisyRecovery):
        return recovery.restored().noise
    return recovery.remainder.found.inputs[:, :0]


def rounding_of_weights(problem: Problem, network: Network, layers: int) -> list[Tensor]:
    """Standard deviation of the error that the rounding of weights adds to each row's entries.

    Args:
        problem: the update; of a gradient it is 0.
        network: the network.
        layers: number of its layers from the first on.

    Returns:
        ``(out,)`` for each layer.
    """
    facts = problem.knowledge
    found = []
    for layer in range(layers):
        weight = network.weights[layer]
        sizes = weight.square().mean(dim=1).sqrt()
        rate = facts.learning_rate or 1.0
        found.append(network.unit * sizes / rate if facts.protocol != "fedsgd" else 0 * sizes)
    return found


def _flat_bounds(facts: Knowledge) -> tuple[Tensor, Tensor]:
    low, high = (bound.double().expand(facts.input_shape).flatten() for bound in facts.bounds)
    return low, high


def _head_bias(problem: Problem, network: Network) -> Tensor | None:
    name = f"{network.names[-1]}.bias"
    if not network.has_bias(network.hidden) or name in problem.left_out:
        return None
    return problem.gradient[name].double().cpu()


def _progress(report: Report, samples: int) -> Callable[[int], None]:
    return lambda found: report(Progress(found, samples, 1 - found / max(samples, 1)))


def _mean_left(remainder: Remainder, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """The mean of the samples that are left, weighted by their signals, ``(1, entries)``."""
    matrix = remainder.matrix(0)
    if remainder.network.has_bias(0):
        bias = matrix[:, -1]
        mean = (bias @ matrix[:, :-1]) / bias.square().sum().clamp_min(1e-300)
    else:
        mean = matrix.abs().mean(dim=0)
        mean = mean / mean.max().clamp_min(1e-300)
    low, high = bounds
    return torch.minimum(torch.maximum(mean, low), high)[None]


def _labels_left(problem: Problem, found: Tensor) -> Tensor:
    """The labels of the samples that were not found: those that are told or recovered, less them.

    Where they cannot be recovered, class 0 stands for each.
    """
    facts = problem.knowledge
    try:
        labels = facts.labels
        if labels is None:
            labels = recover_labels(problem.model, problem.gradient, facts, problem.loss)
        left = labels.tolist()
    except BadInput:
        left = [0] * facts.num_samples
    for label in found.tolist():
        if label in left:
            left.remove(label)
    number = facts.num_samples - len(found)
    return torch.tensor((left + [0] * number)[:number], dtype=torch.long)


def order_of(labels: Tensor, told: Tensor) -> Tensor:
    """Numbers of the samples in the order of the told labels; the others fill what is left.

    Args:
        labels: labels of the samples, ``(samples,)``.
        told: the labels in the order wanted, ``(samples,)``.
    """
    free = list(range(len(labels)))
    order: list[int | None] = []
    for label in told.tolist():
        at = next((i for i in free if int(labels[i]) == label), None)
        order.append(at)
        if at is not None:
            free.remove(at)
    return torch.tensor([free.pop(0) if at is None else at for at in order], dtype=torch.long)


def _about_update(problem: Problem, network: Network) -> tuple[str, ...]:
    """What in the update keeps samples from being found."""
    facts = problem.knowledge
    found = [
        f"`{name}.weight` did not move: frozen, or not sent"
        for name in network.names[:-1]
        if f"{name}.weight" in problem.left_out
    ]
    if facts.steps > 1:
        found.append(
            f"the update is of {facts.steps} steps, each with weights of its own: the mean of "
            "their gradients is taken for that of one"
        )
    return tuple(found)


def _about_repeated(number: int) -> tuple[str, ...]:
    """That parts of the gradient are multiples of a sample's, and what they may be."""
    if not number:
        return ()
    they, occur = ("it", "it occurs") if number == 1 else ("they", "they occur")
    means = "is the mean" if number == 1 else "are the means"
    return (
        f"the parts of {_samples(number)} are multiples of one sample's: {occur} more than once, "
        f"or {they} {means} of as many near ones that activate the same units, or loss, learning "
        "rate or number of samples are not those told: not certified",
    )


def _about_labels(facts: Knowledge, certified: Tensor) -> tuple[str, ...]:
    """Whether certified samples have labels that were not told."""
    if facts.labels is None:
        return ()
    told, found = Counter(facts.labels.tolist()), Counter(certified.tolist())
    strange = sorted((found - told).elements())
    if not strange:
        return ()
    return (
        f"certified samples have labels {', '.join(map(str, strange))} that were not told, or not "
        "as often: the labels told are not those of the batch",
    )


def _about_range(outside: int) -> tuple[str, ...]:
    """That samples lie outside the range that was told."""
    if not outside:
        return ()
    return (
        f"{outside} samples that agree with the gradient lie outside the valid range, as mean, std "
        "or value range tell it: they are clipped to it and not certified",
    )


def _with_true_bounds(recovery: Recovery | NoisyRecovery) -> Samples:
    """The samples; where one is seen to be no 8-bit image, no other is taken for one."""
    found, levels = recovery.remainder.found, recovery.levels
    if levels is None or len(found) == 0:
        return found
    exact, near = levels.round(found.inputs)
    distance = (exact - found.inputs).norm(dim=1)
    # A sample near the levels that has a bound lies farther off than its reading can be wrong.
    strange = (found.bounds > 0) & (near | (distance > found.bounds))
    return replace(found, bounds=found.unconditional) if bool(strange.any()) else found


def _about_levels(found: Samples, least: float) -> tuple[str, ...]:
    """Under which condition the bound of samples is 0, and what it is without."""
    taken = (found.bounds == 0) & (found.unconditional > 0)
    number = int(found.counts[taken].sum())
    if not number:
        return ()
    without, counts = found.unconditional[taken], found.counts[taken]
    are, have = ("is", "its") if number == 1 else ("are", "their")
    near = without <= least
    parts = [
        (int(counts[some].sum()), float(without[some].max()))
        for some in (near, ~near)
        if bool(some.any())
    ]
    limits = " and ".join(
        f"{limit:.1e}" + f" for {_samples(many)}" * (many < number) for many, limit in parts
    )
    text = (
        f"{_samples(number)} {are} taken for 8-bit images, as all {have} pixels lie near one of "
        f"the 256 levels: the error is 0 only if they are, and otherwise at most {limits}"
    )
    return (text,)


def _findings(
    recovery: Recovery | NoisyRecovery, bounds: Tensor, rank: int, levels: tuple[str, ...]
) -> tuple[str, ...]:
    """What there is to say about the samples, a sentence each."""
    remainder = recovery.remainder
    certified, batch = int(bounds.isfinite().sum()), remainder.batch
    text = f"{certified} of {_samples(batch)} certified"
    if certified:
        text += f", norm of the error at most {float(bounds[bounds.isfinite()].max()):.1e}"
        text += " if they are 8-bit images" * bool(levels)
    found = [text, *levels]
    if recovery.sources:
        stages = ", ".join(f"{number} {stage}" for stage, number in recovery.sources.items())
        found.append(f"found by stage: {stages}")
    if rank and not remainder.missing:
        found.append(
            f"what is left of the gradient of {remainder.network.names[0]} has rank {rank}: more "
            "samples than told, or another loss or learning rate"
        )
    if remainder.missing:
        found.append(
            f"{_samples(remainder.missing)} missing, what is left of the gradient of "
            f"{remainder.network.names[0]} has rank {rank}"
        )
        if rank < remainder.missing:
            hidden = remainder.missing - rank
            verb = "leaves" if hidden == 1 else "leave"
            found.append(
                f"{_samples(hidden)} {verb} less than the rounding of the gradient, as where the "
                "model classifies with certainty, or the batch has fewer samples than told, or "
                "equal ones"
            )
    if certified < batch:
        guesses = (~bounds.isfinite()).nonzero().flatten().tolist()
        what = f"sample{'s' * (len(guesses) > 1)} {_ranges(guesses)}"
        found.append(f"guesses, not certified: {what}")
    if certified and isinstance(recovery, NoisyRecovery):
        found.append(f"the noise of {certified} sample{'s' * (certified > 1)} restored")
    return tuple(found)


def _samples(number: int) -> str:
    return f"{number} sample{'s' * (number != 1)}"


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers as a text, runs in short: ``3, 5 to 9``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join(" to ".join(map(str, dict.fromkeys(run))) for run in runs)
