"""Assignment of reconstructions to samples, and scores that any kind of sample has."""

from collections import Counter

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fedleak.attacks.base import Reconstruction
from fedleak.updates.truth import GroundTruth

Array = npt.NDArray[np.float64]


def require_same_shape(truth: GroundTruth, reconstruction: Reconstruction) -> None:
    """Check that samples and reconstructions have the same shape ``(B, ...)``.

    Args:
        truth: the client's batch.
        reconstruction: the reconstructions.

    Raises:
        ValueError: if the shapes differ.
    """
    if truth.inputs.shape != reconstruction.inputs.shape:
        raise ValueError(
            f"Expected a reconstruction of shape {tuple(truth.inputs.shape)}, "
            f"got {tuple(reconstruction.inputs.shape)}."
        )


def assign(originals: Array, candidates: Array) -> list[int]:
    """The one-to-one assignment of candidates to originals with the least total squared error.

    Args:
        originals: ``(B, ...)``.
        candidates: ``(B, ...)``; NaN counts as an infinite error.

    Returns:
        For each original the position of its candidate.
    """
    # Imported here, since importing it is slow and an attack does not need it.
    from scipy.optimize import linear_sum_assignment

    flat, other = originals.reshape(len(originals), -1), candidates.reshape(len(candidates), -1)
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b, so that the differences of all pairs are never in memory.
    products = flat @ other.T
    errors = (flat**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * products
    finite = np.nan_to_num(errors, nan=1e9, posinf=1e9)
    return [int(column) for column in linear_sum_assignment(finite)[1]]


def noise_error(
    truth: GroundTruth, reconstruction: Reconstruction, sample: int, match: int
) -> float:
    """Mean squared error of one sample's restored noise.

    Args:
        truth: the client's batch, with the noise that its slots drew.
        reconstruction: the attack's result, with the restored noise.
        sample: position of the sample in the client's batch.
        match: position of the reconstruction that was matched to it.

    Returns:
        The mean over all entries of the restored slots; NaN if no slot was restored in the shape of
        the truth (an attack may restore one noise for all local steps instead of one per step).
    """
    shared = [
        name
        for name in truth.noise.keys() & reconstruction.noise.keys()
        if truth.noise[name].shape == reconstruction.noise[name].shape
    ]
    if not shared:
        return float("nan")
    errors = [truth.noise[name][sample] - reconstruction.noise[name][match] for name in shared]
    total = sum(float(error.square().sum()) for error in errors)
    return total / sum(error.numel() for error in errors)


def label_recovery_rate(labels: Tensor, recovered: Tensor) -> float:
    """Share of a batch's labels that were recovered, compared as multisets.

    Args:
        labels: the true labels ``(B,)``, in any order.
        recovered: the recovered labels ``(B,)``, in any order.

    Returns:
        The share, 0 to 1.

    Raises:
        ValueError: if the shapes differ, or there are no labels.
    """
    if labels.shape != recovered.shape or not len(labels):
        raise ValueError(
            f"Expected as many labels as recovered ones, and one at least, got {len(labels)} and "
            f"{len(recovered)}."
        )
    shared = Counter(labels.tolist()) & Counter(recovered.tolist())
    return shared.total() / len(labels)
