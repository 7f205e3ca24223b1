"""How much of a user's interaction vector a reconstruction tells."""

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
        precision: share of the items that were found that the user has; 0 if none was found.
        recall: share of the user's items that were found.
        f1: harmonic mean of both.
        exact: whether the items that were found are the user's, no more and no less.
        noise_mse: mean squared error of the restored noise; NaN where none was restored.
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
        truth: the client's batch ``(B, items)``, 1 where the user has the item and else 0.
        reconstruction: as many vectors.
        threshold: the value from which an item counts as found; NaN does not.

    Returns:
        A score for each user, in the order of the batch.

    Raises:
        ValueError: if the numbers or shapes of truth and reconstruction differ.
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
