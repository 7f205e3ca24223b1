"""The columns of a table, and the entries of a sample that they become."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TableColumn:
    """A column of a table, and the entries of a sample that it became.

    Args:
        name: its name.
        start: its first entry in a sample.
        categories: of a categorical column, its values, one entry of a sample for each; empty for
            a numeric column, which is one entry.
        mean: the mean that was subtracted from a numeric column.
        std: the standard deviation by which it was divided.
        guess: the guess of its value that needs no attack: of a numeric column, the mean over the
            training rows; of a categorical one, the number of the most frequent category.
        spread: standard deviation of a numeric column over the training rows, in its own unit.
        low: lowest value of its entries, in its own unit, that a server is told.
        high: the highest.
    """

    name: str
    start: int
    categories: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    guess: float = 0.0
    spread: float = 1.0
    low: float = -math.inf
    high: float = math.inf

    @property
    def width(self) -> int:
        """Number of entries of a sample that it takes."""
        return len(self.categories) or 1

    @property
    def entries(self) -> range:
        """The entries of a sample that it takes."""
        return range(self.start, self.start + self.width)

    def value(self, sample: Tensor) -> float:
        """Its value in a sample: a number in its own unit, or the number of the category.

        NaN if the sample has NaN there.

        Args:
            sample: ``(entries,)``.
        """
        part = sample[self.start : self.start + self.width].double()
        if bool(part.isnan().any()):
            return math.nan
        return float(part.argmax()) if self.categories else float(part * self.std + self.mean)

    def text(self, value: float) -> str:
        """A value as a reader of the table would write it.

        Args:
            value: see :meth:`value`.
        """
        if math.isnan(value):
            return "nan"
        if self.categories:
            return self.categories[int(value)]
        # A sample is of single precision: what is small against the spread is rounding.
        digits = 5 - math.floor(math.log10(self.spread))
        return f"{round(value, digits) + 0.0:.6g}"


def numeric_columns(inputs: Tensor) -> list[TableColumn]:
    """Columns of samples of which nothing but their numbers is known.

    Args:
        inputs: samples of the training set, ``(N, entries)``.
    """
    mean, spread = inputs.double().mean(dim=0), inputs.double().std(dim=0, correction=0)
    return [
        TableColumn(
            str(at), at, guess=float(mean[at]),
            spread=float(spread[at]) if math.isfinite(spread[at]) and spread[at] > 0 else 1.0,
        )
        for at in range(inputs.shape[1])
    ]  # fmt: skip
