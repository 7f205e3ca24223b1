"""Scores of what a malicious server has read: each found sample beside a sample of the client."""

import math
import statistics
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedleak.attacks.base import Reconstruction
from fedleak.metrics.assignment import assign
from fedleak.runs.scoring import CERTIFIED, COSINE, LABELS, Scores, Scoring
from fedleak.servers.base import Reading
from fedleak.updates.truth import GroundTruth

EXACT_COSINE = 1 - 1e-5
"""Cosine of the features from which a sample counts as read exactly."""


def match_reading(
    reading: Reading, truth: GroundTruth, features: Tensor | None = None
) -> list[tuple[int, int]]:
    """The one-to-one assignment of found samples to the client's, so that none counts twice.

    Args:
        reading: what was read.
        truth: the client's samples.
        features: the features that an exact reading gives of them, ``(samples, features)``; the
            directions are compared. If None, the inputs are.

    Returns:
        Pairs of a found sample and a sample of the client, by the found one; of more found samples
        than the client has, the nearest.
    """
    if features is None:
        found, original = reading.inputs.double(), truth.inputs.double()
    else:
        found, original = _directions(reading.features), _directions(features)
    few, many = found.flatten(1).numpy(), original.flatten(1).numpy()
    if not len(few) or not len(many):
        return []
    if len(few) <= len(many):
        return list(enumerate(assign(few, many)))
    return sorted((found, sample) for sample, found in enumerate(assign(many, few)))


def score_reading(
    reading: Reading,
    truth: GroundTruth | None,
    scoring: Scoring,
    *,
    features: Tensor | None = None,
    guess: Tensor | None = None,
) -> tuple[list[Scores], dict[str, Any]]:
    """Score what was read.

    Args:
        reading: what was read.
        truth: the client's samples. If None, there are no scores.
        scoring: how samples are scored.
        features: see :func:`match_reading`.
        guess: a sample ``(...)`` that is guessed without the updates. If None, all zeros, the mean
            of normalised data.

    Returns:
        For each found sample that has one of the client's beside it, its values by column, with
        ``match``, its position in the reading. And of the reading its numbers: ``found``,
        ``certified``, ``matched``, ``success``, the means of the main score and of the guess's, and
        ``exact``, the number of features of a cosine above 1 - 1e-5 (None of inputs).
    """
    found = len(reading.inputs)
    facts: dict[str, Any] = {"found": found, "certified": int(reading.certified.sum())}
    if truth is None:
        rows = [{"sample": at, "match": at, CERTIFIED: _flag(reading, at)} for at in range(found)]
        return rows, facts
    pairs = match_reading(reading, truth, features)
    chance = torch.zeros_like(truth.inputs[0]) if guess is None else guess
    rows, guessed = [], []
    headline = scoring.headline[0]
    for position, sample in pairs:
        own = GroundTruth(truth.inputs[sample : sample + 1], truth.labels[sample : sample + 1])
        (row,) = scoring.scores(own, _alone(reading.inputs[position], own))
        row |= {"sample": sample, "match": position, CERTIFIED: _flag(reading, position)}
        if features is not None:
            row[COSINE] = _cosine(reading.features[position], features[sample])
        label = int(reading.labels[position])
        if scoring.has_classes and not truth.labels.is_floating_point() and label >= 0:
            row[LABELS] = float(label == int(truth.labels[sample]))
        rows.append(row)
        guessed.append(scoring.scores(own, _alone(chance, own))[0][headline])
    facts |= {
        "matched": len(pairs),
        "success": sum(row["success"] for row in rows),
        headline: _mean([row[headline] for row in rows]),
        f"{headline}_of_guess": _mean(guessed),
        "exact": None if features is None else sum(row[COSINE] > EXACT_COSINE for row in rows),
    }
    return rows, facts


def as_reconstruction(reading: Reading, seconds: float) -> Reconstruction:
    """A reading in the form in which a run's observers and tables take results.

    Args:
        reading: what was read.
        seconds: time that it took.
    """
    return Reconstruction(
        inputs=reading.inputs, labels=reading.labels, seconds=seconds, findings=reading.findings
    )


def _alone(sample: Tensor, truth: GroundTruth) -> Reconstruction:
    return Reconstruction(inputs=sample[None].to(truth.inputs), labels=truth.labels)


def _flag(reading: Reading, position: int) -> int:
    return int(reading.certified[position])


def _directions(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.double(), dim=1)


def _cosine(found: Tensor, true: Tensor) -> float:
    cosine = float(torch.nn.functional.cosine_similarity(found.double(), true.double(), dim=0))
    return float(np.clip(cosine, -1.0, 1.0))


def _mean(values: list[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else None
