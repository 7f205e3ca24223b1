"""The scale of features that are known up to a factor, and features that are not known."""

import torch
from torch import Tensor

from fedleak.servers.bin_thresholds import Division

RIDGE = 1e-2
"""Ridge penalty, relative to the mean square of a feature."""
FEWEST = 20
"""Fewest public samples in the bins from which the errors of the predictions are told."""


def linear_predictor(features: Tensor, target: Tensor, unknown: list[int]) -> Tensor:
    """Weights of a linear prediction of a number from the features, without a constant.

    As there is no constant, the prediction from features times a factor is the number times it. So
    a number that is known, even one that is 1 for every sample, tells the factor; the biases of an
    encoder make its features tell their scale.

    Args:
        features: of public samples, ``(public, features)``.
        target: the number, ``(public,)``.
        unknown: numbers of the features that the prediction does not use.

    Returns:
        float64 ``(features,)``, 0 for the unknown ones.
    """
    values = features.double()
    used = torch.ones(values.shape[1], dtype=torch.bool)
    used[unknown] = False
    known = values[:, used]
    square = known.T @ known
    square.diagonal().add_(RIDGE * square.diagonal().mean().clamp(min=1e-12))
    weights = torch.zeros(values.shape[1], dtype=torch.float64)
    weights[used] = torch.linalg.solve(square, known.T @ target.double())
    return weights


def scaled_features(sums: Tensor, public: Tensor, division: Division) -> Tensor:
    """Features at their scale and with their sign, all of them.

    The scale follows from a linear prediction of the divided feature, which is known from the bin,
    or of the number 1, whichever is the better in public samples of these bins.

    Args:
        sums: features times an unknown factor each, ``(units - 1, features)``, a row for each bin;
            the columns of the division are not used.
        public: features of public samples, ``(public, features)``.
        division: the bins.

    Returns:
        float64 ``(units - 1, features)``; rows of zeros stay zeros.
    """
    columns, public = division.columns, public.double()
    sums = sums.double().clone()
    sums[:, columns] = 0
    # Far from 0, so that no product is lost below float64's range.
    sums = sums / sums.abs().amax(dim=1, keepdim=True).clamp(min=5e-324)
    values = division.of(public)
    inside = (values >= division.thresholds[0]) & (values <= division.thresholds[-1])
    near = public[inside] if int(inside.sum()) >= FEWEST else public
    targets = [(torch.ones(len(public)), torch.ones(len(near)), torch.ones(len(sums)))]
    if division.reference is None:
        feature = division.feature
        targets.append((public[:, feature], near[:, feature], division.middles))
    choices = []
    for everywhere, here, wanted in targets:
        predictor = linear_predictor(public, everywhere, columns)
        ratio = (near @ predictor) / here
        mean = float(ratio.mean())
        choices.append((float(ratio.std()) / max(abs(mean), 1e-12), mean, predictor, wanted))
    _, mean, predictor, wanted = min(choices, key=lambda choice: choice[0])
    predicted = sums @ predictor
    factor = torch.where(predicted == 0, 0.0, wanted * mean / predicted)
    found = factor[:, None] * sums
    filled = found.any(dim=1)
    others = {at: found @ linear_predictor(public, public[:, at], columns) for at in columns}
    if division.reference is None:
        others[division.feature] = torch.where(filled, division.middles, 0.0)
    for at, column in others.items():
        found[:, at] = column
    return found
