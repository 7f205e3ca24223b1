"""Which federations can be attacked how: a row for each optimiser, mode, loss and kind of sample.

    python experiments/federations/measure.py --output experiments/federations/results

It appends to results.csv, a row for each victim, and skips what is there already, so that it can be
interrupted; summary.csv has the means that docs/explanation/federations.md shows. The guess beside
each score is made without the update: the mean of all samples that are not a victim's.
"""

import argparse
import csv
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.federations.settings import SETTINGS, Setting, Victim
from fedleak.updates.truth import GroundTruth
from fedleak import Knowledge, Reconstruction, score_images

COLUMNS = (
    "group", "setting", "attack", "seed", "metric", "score", "guess", "explained", "labels",
    "findings", "seconds",
)  # fmt: skip
SUMMARY = (
    "group", "setting", "attack", "n", "metric", "score", "spread", "guess", "explained", "labels",
    "finding",
)  # fmt: skip


def score(metric: str, victim: Victim, inputs: Tensor) -> float:
    """The score of a reconstruction or of a guess.

    Args:
        metric: ``SSIM`` (mean of the batch), ``relative error`` or ``tokens`` (share of a batch's
            tokens that are right).
        victim: has the true inputs.
        inputs: what is scored, of the same shape.
    """
    truth = victim.inputs
    if metric == "SSIM":
        labels = torch.zeros(len(truth), dtype=torch.long)
        scores = score_images(
            GroundTruth(truth, labels), Reconstruction(inputs, labels), mean=(0.0,) * 3, std=(1.0,) * 3
        )
        return statistics.fmean(one.ssim for one in scores)
    if metric == "tokens":
        return float((inputs == truth).double().mean())
    return float((inputs - truth).norm() / truth.norm())


def measure(setting: Setting, seed: int) -> dict[str, Any]:
    """Make one victim, attack it and score what comes out.

    Args:
        setting: the row.
        seed: number of the victim, from 0.
    """
    victim = setting.make(seed)
    (found,) = setting.attack()([victim.update], victim.knowledge, seed=seed)
    right = math.nan
    if victim.labels is not None and not victim.labels.is_floating_point():
        if victim.knowledge.labels is None and victim.labels.shape == found.labels.shape:
            right = float((victim.labels.sort().values == found.labels.sort().values).double().mean())
    return {
        "group": setting.group, "setting": setting.name, "attack": setting.attack().name,
        "seed": seed, "metric": setting.metric,
        "score": f"{score(setting.metric, victim, found.inputs):.4g}",
        "guess": f"{score(setting.metric, victim, victim.guess):.4g}",
        "explained": "" if math.isnan(found.explained) else f"{found.explained:.4f}",
        "labels": "" if math.isnan(right) else f"{right:.3f}",
        "findings": " | ".join(found.findings), "seconds": f"{found.seconds:.2f}",
    }  # fmt: skip
