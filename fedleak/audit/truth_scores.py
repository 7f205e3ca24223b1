"""Scores of reconstructed inputs against the recorded truth, beside a guess without the update."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from fedleak.attacks.base import Reconstruction
from fedleak.audit.facts import Place
from fedleak.metrics import score_images
from fedleak.metrics.assignment import assign
from fedleak.metrics.images import SSIM_WINDOW
from fedleak.metrics.tokens import score_tokens
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.truth import GroundTruth


@dataclass(frozen=True, repr=False, eq=False)
class Samples:
    """A client's samples, for the scorer alone.

    Args:
        inputs: the samples ``(N, ...)``, as the client's model took them.
        labels: their labels ``(N, ...)``; None if there are none.
        others: what the model is called with besides, by place.
    """

    inputs: Tensor
    labels: Tensor | None
    others: Mapping[Place, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Samples of shape {tuple(self.inputs.shape)}>"

    @property
    def are_images(self) -> bool:
        """Whether they are images that are large enough for SSIM's window."""
        shape = self.inputs.shape[1:]
        return (
            self.inputs.is_floating_point() and len(shape) == 3 and shape[0] <= 4
            and min(shape[1:]) >= SSIM_WINDOW
        )  # fmt: skip


@dataclass(frozen=True)
class Score:
    """How well a client's samples were reconstructed.

    Args:
        key: the update's key.
        attack: name of the attack.
        value: mean over the client's samples, see :func:`measure_of`.
        guess: the same of a guess without the update.
        explained: share of the update that the reconstruction explains; NaN if not known.
        supported: whether the update supports the reconstruction.
        values: the measure of each sample.
        guesses: that of the guess of each sample.
        matches: of each sample, the position of the reconstruction that was matched to it; empty
            if it was read from a file.
        guessed: the same of the guess.
    """

    key: str
    attack: str
    value: float
    guess: float
    explained: float
    supported: bool
    values: tuple[float, ...] = ()
    guesses: tuple[float, ...] = ()
    matches: tuple[int, ...] = ()
    guessed: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        key: str,
        attack: str,
        values: Sequence[float],
        guesses: Sequence[float],
        explained: float,
        supported: bool,
        matches: Sequence[int] = (),
        guessed: Sequence[int] = (),
    ) -> Self:
        """The score of a client with those of its samples; see the class."""
        return cls(
            key, attack, _mean(values), _mean(guesses), explained, supported, tuple(values),
            tuple(guesses), tuple(matches), tuple(guessed),
        )  # fmt: skip


def measure_of(samples: Samples) -> tuple[str, float]:
    """The measure by which samples are scored, and its value where all is exact.

    Args:
        samples: a client's samples.
    """
    if not samples.inputs.is_floating_point():
        return "share of tokens in their place", 1.0
    if samples.are_images:
        return "SSIM of images, on the scale of the model's inputs", 1.0
    return "relative error of a sample, 0 is exact", 0.0


def mean_guess(others: Sequence[Tensor], truth: Samples) -> Tensor:
    """A guess of a client's samples without its update: the mean of the other clients' samples.

    Of whole numbers it is the most frequent one in each place. Without other clients it is 0.

    Args:
        others: samples of the other clients, each ``(N, ...)``.
        truth: the client's samples, for the shape.

    Returns:
        A guess of the same shape as the samples.
    """
    same = [other for other in others if other.shape[1:] == truth.inputs.shape[1:]]
    if not same:
        return torch.zeros_like(truth.inputs)
    pooled = torch.cat(same)
    one = pooled.mean(0) if pooled.is_floating_point() else pooled.mode(0).values
    return one.expand_as(truth.inputs).clone()


def score(
    key: str,
    attack: str,
    truth: Samples,
    found: Reconstruction,
    guess: Tensor,
    knowledge: Knowledge,
) -> Score:
    """Score a reconstruction and a guess in the same way.

    Args:
        key: the update's key.
        attack: name of the attack.
        truth: the client's samples.
        found: the reconstruction.
        guess: see :func:`mean_guess`.
        knowledge: gives mean and standard deviation of images.
    """
    values, matches = _sample_scores(truth, found.inputs)
    guesses, guessed = _sample_scores(truth, guess)
    return Score.of(
        key, attack, values, guesses, found.explained, found.supported, matches, guessed
    )


def _mean(values: Sequence[float]) -> float:
    """The mean of the finite values; infinity if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.inf


def _sample_scores(truth: Samples, inputs: Tensor) -> tuple[list[float], list[int]]:
    """The measure of each sample, and the position of the reconstruction matched to it."""
    labels = torch.zeros(len(truth.inputs), dtype=torch.long)
    pair = GroundTruth(truth.inputs, labels), Reconstruction(inputs.to(truth.inputs), labels)
    if not truth.inputs.is_floating_point():
        tokens = score_tokens(*pair)
        return [item.token_accuracy for item in tokens], [item.match for item in tokens]
    if truth.are_images:
        # The clients' scaling is not known unless it was told: images are brought to [0, 1] by the
        # range of the true ones, so that the measure does not depend on it.
        low, high = float(truth.inputs.min()), float(truth.inputs.max())
        size = max(high - low, 1e-12)
        scaled = [GroundTruth((truth.inputs - low) / size, labels),
                  Reconstruction((inputs.to(truth.inputs) - low) / size, labels)]  # fmt: skip
        channels = truth.inputs.shape[1]
        found = score_images(*scaled, mean=(0.0,) * channels, std=(1.0,) * channels)  # type: ignore[arg-type]
        return [item.ssim for item in found], [item.match for item in found]
    originals, candidates = truth.inputs.double().numpy(), inputs.double().numpy()
    matches = assign(originals, candidates)
    errors = [
        float(torch.tensor(originals[i] - candidates[m]).norm()) / (norm or 1.0)
        for i, m in enumerate(matches)
        for norm in [float(torch.tensor(originals[i]).norm())]
    ]
    return errors, [int(match) for match in matches]
