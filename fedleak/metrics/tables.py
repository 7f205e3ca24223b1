"""Scores of reconstructed rows of a table, beside the guess that needs no attack."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedleak.attacks.base import Reconstruction
from fedleak.data.columns import TableColumn
from fedleak.metrics.assignment import assign, noise_error, require_same_shape
from fedleak.updates.truth import GroundTruth

# A numeric column counts as right within this many standard deviations, as in TabLeak (Vero et al.,
# ICML 2023, https://arxiv.org/abs/2210.01785, section 4): a normal column's mean is so once in 4.
RIGHT_WITHIN = 0.319
# And as exact within this many.
EXACT_WITHIN = 1e-3


@dataclass(frozen=True)
class ColumnScore:
    """One column of a reconstructed row.

    Args:
        column: the column.
        true: its value, in its own unit; of a categorical column, the number of the category.
        found: the reconstructed one.
        error: of a numeric column, the absolute error in standard deviations of the column; of a
            categorical one, 0 if it is right and else 1.
        error_of_guess: the same of the column's mean or most frequent category.
    """

    column: TableColumn
    true: float
    found: float
    error: float
    error_of_guess: float

    @property
    def right(self) -> bool:
        """Whether the category is right, or the number within 0.319 standard deviations."""
        return self.error <= RIGHT_WITHIN

    @property
    def guessed(self) -> bool:
        """Whether the guess is right in the same sense."""
        return self.error_of_guess <= RIGHT_WITHIN


@dataclass(frozen=True)
class TableScore:
    """Scores of one row of a batch.

    Args:
        sample: the row's position in the client's batch.
        match: position of the reconstruction that was matched to it.
        mse: mean squared error over all entries of the sample.
        right: share of the columns that are right, see :attr:`ColumnScore.right`.
        right_of_guess: the same share of the guess of each column's mean or most frequent category.
        error: mean error of the numeric columns, in standard deviations; NaN if there are none.
        error_of_guess: the same of the guess.
        exact: whether every category is right and every number within 0.001 standard deviations.
        noise_mse: mean squared error of the restored noise; NaN if none was restored.
        columns: the columns one by one.
    """

    sample: int
    match: int
    mse: float
    right: float
    right_of_guess: float
    error: float
    error_of_guess: float
    exact: bool
    noise_mse: float
    columns: tuple[ColumnScore, ...]


def score_tables(
    truth: GroundTruth, reconstruction: Reconstruction, columns: Sequence[TableColumn]
) -> list[TableScore]:
    """Match the reconstructions of a batch to its rows and score each pair.

    Args:
        truth: the client's batch ``(B, entries)``.
        reconstruction: reconstructed rows ``(B, entries)``.
        columns: the table's columns, at least one.

    Returns:
        A score for each row, in the order of the batch.

    Raises:
        ValueError: if the shapes of truth and reconstruction differ.
    """
    require_same_shape(truth, reconstruction)
    originals = truth.inputs.double().flatten(1)
    candidates = reconstruction.inputs.double().flatten(1)
    scores = []
    for sample, match in enumerate(assign(originals.numpy(), candidates.numpy())):
        found = score_columns(originals[sample], candidates[match], columns)
        numeric = [score for score in found if not score.column.categories]
        number = len(numeric) or float("nan")
        scores.append(
            TableScore(
                sample=sample,
                match=match,
                mse=float((originals[sample] - candidates[match]).square().mean()),
                right=sum(score.right for score in found) / len(found),
                right_of_guess=sum(score.guessed for score in found) / len(found),
                error=sum(score.error for score in numeric) / number,
                error_of_guess=sum(score.error_of_guess for score in numeric) / number,
                exact=all(score.error <= EXACT_WITHIN for score in found),
                noise_mse=noise_error(truth, reconstruction, sample, match),
                columns=tuple(found),
            )
        )
    return scores


def score_columns(
    original: Tensor, candidate: Tensor, columns: Sequence[TableColumn]
) -> list[ColumnScore]:
    """Score the columns of one row.

    Args:
        original: the true sample ``(entries,)``.
        candidate: the reconstructed one.
        columns: the table's columns.
    """
    scores = []
    for column in columns:
        true, found = column.value(original), column.value(candidate)
        errors = [
            float(value != true) if column.categories else abs(value - true) / column.spread
            for value in (found, column.guess)
        ]
        scores.append(ColumnScore(column, true, found, *errors))
    return scores
