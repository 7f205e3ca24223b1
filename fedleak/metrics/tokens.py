"""Scores of reconstructed sequences of whole numbers, such as tokens, and of their sets."""

from dataclasses import dataclass

import torch

from fedleak.attacks.base import Reconstruction
from fedleak.metrics.assignment import noise_error, require_same_shape
from fedleak.updates.truth import GroundTruth


@dataclass(frozen=True)
class TokenScore:
    """Scores of one sequence of a batch.

    Args:
        sample: the sequence's position in the client's batch.
        match: position of the reconstruction that was matched to it.
        token_accuracy: share of the positions that have the right number.
        exact: whether all have.
        precision: share of the numbers that were found anywhere in the batch and are in it; 0 if
            none were found.
        recall: share of the numbers of the batch that were found.
        f1: harmonic mean of precision and recall.
        noise_mse: mean squared error of the restored noise; NaN if none was restored.
    """

    sample: int
    match: int
    token_accuracy: float
    exact: bool
    precision: float
    recall: float
    f1: float
    noise_mse: float


def score_tokens(truth: GroundTruth, reconstruction: Reconstruction) -> list[TokenScore]:
    """Match the reconstructions of a batch to its sequences and score each pair.

    The set of the numbers is that of the whole batch, as an update tells no more of it: that of the
    reconstructed inputs or, if the attack read the rows of embeddings, of these rows.

    Args:
        truth: the client's batch ``(B, ...)`` of whole numbers.
        reconstruction: reconstructed numbers ``(B, ...)``; a negative one is unknown.

    Returns:
        A score for each sequence, in the order of the batch.

    Raises:
        ValueError: if the shapes of truth and reconstruction differ.
    """
    from scipy.optimize import linear_sum_assignment

    require_same_shape(truth, reconstruction)
    originals, candidates = truth.inputs.flatten(1), reconstruction.inputs.flatten(1)
    agreeing = (originals[:, None] == candidates[None]).double().mean(dim=2)
    _, matches = linear_sum_assignment(-agreeing.numpy())
    has = set(originals.flatten().tolist())
    found = {number for number in candidates.flatten().tolist() if number >= 0}
    if len(reconstruction.rows) == 1:
        found = set(next(iter(reconstruction.rows.values())).tolist())
    shared = len(has & found)
    precision, recall = shared / max(1, len(found)), shared / len(has)
    f1 = 2 * shared / (len(has) + len(found))
    return [
        TokenScore(
            sample=sample,
            match=int(match),
            token_accuracy=float(agreeing[sample, match]),
            exact=bool(torch.equal(originals[sample], candidates[match])),
            precision=precision,
            recall=recall,
            f1=f1,
            noise_mse=noise_error(truth, reconstruction, sample, int(match)),
        )
        for sample, match in enumerate(matches)
    ]
