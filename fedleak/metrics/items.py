"""Scores of reconstructed interaction vectors: precision, recall and F1 over items."""

from dataclasses import dataclass

from fedleak.attacks.base import Reconstruction
from fedleak.extras import extras_explained
from fedleak.metrics.assignment import assign, noise_error, require_same_shape
from fedleak.updates.truth import GroundTruth


@dataclass(frozen=True)
class ItemScore:
    """Scores of one user of a batch.

    Args:
        sample: the user's position in the client's batch.
        match: position of the reconstruction that was matched to it.
        mse: mean squared error over all items.
        precision: share of the reconstructed items that the user has; 0 if there are none.
        recall: share of the user's items that were reconstructed.
        f1: harmonic mean of precision and recall.
        exact: whether the reconstructed items are exactly the user's.
        noise_mse: mean squared error of the restored noise; NaN if none was restored.
    """

    sample: int
    match: int
    mse: float
    precision: float
    recall: float
    f1: float
    exact: bool
    noise_mse: float


def score_items(
    truth: GroundTruth, reconstruction: Reconstruction, *, threshold: float = 0.6
) -> list[ItemScore]:
    """Match the reconstructions of a batch to its users and score each pair.

    Args:
        truth: the client's batch ``(B, items)``, 1 for items that the user has, otherwise 0.
        reconstruction: reconstructed vectors ``(B, items)``.
        threshold: value from which an item counts as reconstructed; NaN does not count.

    Returns:
        A score for each user, in the order of the batch.

    Raises:
        ValueError: if the shapes of truth and reconstruction differ.
        MissingExtra: if torchmetrics is not installed.
    """
    with extras_explained():
        from torchmetrics.functional.classification import (
            binary_f1_score,
            binary_precision,
            binary_recall,
        )

    require_same_shape(truth, reconstruction)
    originals, candidates = truth.inputs.double(), reconstruction.inputs.double()
    scores = []
    for sample, match in enumerate(assign(originals.numpy(), candidates.numpy())):
        has = originals[sample] >= 0.5
        found = candidates[match] >= threshold
        pair = found.int(), has.int()
        scores.append(
            ItemScore(
                sample=sample,
                match=match,
                mse=float((originals[sample] - candidates[match]).square().mean()),
                precision=float(binary_precision(*pair)),
                recall=float(binary_recall(*pair)),
                f1=float(binary_f1_score(*pair)),
                exact=bool((found == has).all()),
                noise_mse=noise_error(truth, reconstruction, sample, match),
            )
        )
    return scores
