"""Whether a bin holds one sample: its direction stays if the classes' signals are changed.

Of a bin with samples ``x_i`` the difference of two rows is the sum of ``c_i x_i``. Asked again with
other signals, it keeps its direction if it is of one sample, and turns if it is of several with
different labels. Samples of one label keep their ratio too if their signals do not depend on their
place in the epoch; they are recognised by a sum that is too long for one sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedleak.updates.knowledge import Knowledge
from fedleak.updates.optimizer_steps import State, optimizer_step

CERTAIN = 1e-5
"""Largest ``1 - |cos|`` by which a certified direction may differ from the sample's."""
LONGEST = 1.5
"""A sum longer than this, in units of one sample's usual sum, is of several samples."""
USUAL = (0.7, 1.4)
"""Lengths of a usual sum, as the scale of features is known to about a tenth."""


def turned(first: Tensor, second: Tensor) -> Tensor:
    """By how much directions have turned: ``1 - |cos|`` of each pair of rows, float64 ``(rows,)``.

    It is computed from the difference of the unit vectors, so that it is exact far below float64's
    rounding of the cosine. A row of zeros has turned by 1.

    Args:
        first: ``(rows, columns)``.
        second: the same shape.
    """
    one, other = (_unit(rows.double()) for rows in (first, second))
    apart = torch.minimum((one - other).square().sum(1), (one + other).square().sum(1)) / 2
    known = one.any(dim=1) & other.any(dim=1)
    return torch.where(known, apart, torch.ones_like(apart))


def largest_turn(signals: Sequence[Tensor], deviation: float = CERTAIN) -> float:
    """By how much a sum may turn so that it is one sample's up to a deviation.

    A second sample in a sum that is smaller by a factor ``r`` puts its direction off by an angle of
    ``r`` at most. If the signals of their classes change by factors whose ratio is ``q``, the sum
    turns by ``|1 - q|`` times that angle. So the least ``|1 - q|`` of two classes limits what a
    turn can hide. Samples of one class have ``q`` = 1 and are told by their length alone.

    Args:
        signals: signal of each class in each of the two rounds, ``(classes,)``.
        deviation: largest ``1 - |cos|`` of the sum and the sample in the first round.

    Returns:
        The largest ``1 - |cos|`` of the two rounds; the deviation where fewer than two classes send
        a signal.
    """
    first, second = (one.double() for one in signals)
    sent = first != 0
    factors = second[sent] / first[sent]
    ratios = factors[:, None] / factors[None]
    ratios.fill_diagonal_(torch.inf)
    least = float((1 - ratios).abs().min()) if len(factors) > 1 else 1.0
    return deviation * min(1.0, least) ** 2


def _unit(rows: Tensor) -> Tensor:
    # In two steps, as squares of numbers below 1e-154 are 0.
    rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp(min=5e-324)
    length: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / length.clamp(min=1e-300)


@dataclass(frozen=True)
class Labels:
    """Labels of bins with one sample.

    Args:
        labels: ``(bins,)``; -1 where unknown.
        lengths: length of each sum in units of the usual sum of one sample of the label that fits
            it, ``(bins,)``; 0 where none fits or the usual length is not known.
    """

    labels: Tensor
    lengths: Tensor


UNSURE = 0.05
"""Largest relative deviation of a change of the signal from that of a label."""


def labels_of(
    strengths: Sequence[Tensor], signals: Sequence[Tensor], usual: float | None
) -> Labels:
    """Labels of bins from the factors by which their sums changed between two rounds.

    A sample in one of the last batches, or with Adam one of the first, may seem to have another
    label, so that a label is told only of a sum of about the usual length.

    Args:
        strengths: factor of the sample in each of two rounds, ``(bins,)``.
        signals: signal of each class in each of the two rounds, ``(classes,)``.
        usual: usual factor of one sample of signal 1. If None, it is not known.
    """
    first, second = strengths
    factors = torch.where(signals[0] == 0, torch.nan, signals[1] / signals[0])
    changes = torch.where(first == 0, torch.nan, second / first)
    deviation = ((changes[:, None] - factors) / factors).abs().nan_to_num(nan=torch.inf)
    error, labels = deviation.min(dim=1)
    labels = torch.where(error < UNSURE, labels, -1)
    lengths = torch.zeros_like(first)
    if usual is not None:
        expected = usual * signals[0].abs()[labels.clamp(min=0)]
        lengths = torch.where(labels < 0, 0.0, first.abs() / expected)
    plain = (lengths > USUAL[0]) & (lengths < USUAL[1])
    return Labels(torch.where(plain, labels, -1), lengths)


def usual_share(knowledge: Knowledge) -> float | None:
    """Change of a weight by the optimiser for each unit of one sample's gradient, usually.

    The gradient of a batch is the mean over its samples, and is taken to be tiny, as Adam's steps
    are then linear in it. The sample is in the batch in the middle of the training, before which
    as after which most samples count alike.

    Args:
        knowledge: tells optimiser, rate, batch size and number of samples.

    Returns:
        The change, positive. None if one of these is not known.
    """
    facts = knowledge.local
    if knowledge.batch_size is None or facts.learning_rate is None or facts.optimizer == "unknown":
        return None
    weight = {"weight": torch.zeros((), dtype=torch.float64)}
    impulse = {"weight": torch.full((), 1e-30, dtype=torch.float64)}
    state: State = {}
    moved = 0.0
    for step in range(knowledge.steps):
        gradient = impulse if step == (knowledge.steps - 1) // 2 else weight
        change, state = optimizer_step(facts, weight, gradient, state, step)
        moved += float(change["weight"])
    return abs(moved) / 1e-30 / knowledge.batch_size
