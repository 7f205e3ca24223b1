"""Score reconstructions of each kind of sample and save each as PNG or CSV."""

import csv
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from fedleak.attacks.base import Reconstruction
from fedleak.config import Metrics, RunConfig
from fedleak.data import PrivateData, RecommenderData
from fedleak.data.columns import TableColumn
from fedleak.data.table import columns_of
from fedleak.errors import BadInput
from fedleak.metrics import Lpips, score_images, score_items, to_space
from fedleak.metrics.tables import score_columns, score_tables
from fedleak.metrics.tokens import score_tokens
from fedleak.registry import load_class
from fedleak.updates.truth import GroundTruth

Picture = npt.NDArray[np.uint8]
Scores = dict[str, Any]

LPIPS = "lpips"
ITEM_COLUMNS = ("precision", "recall", "f1")
EXACT = "exact"
TABLE_COLUMNS = ("right", "right_of_guess", "error", "error_of_guess", EXACT)
TOKEN_COLUMNS = (*ITEM_COLUMNS, "token_accuracy", EXACT)
LABELS, EXPLAINED = "label_accuracy", "explained"
CERTIFIED, COSINE = "certified", "feature_cosine"
SERVER_COLUMNS = (CERTIFIED, COSINE)
"""Columns of what a malicious server has read."""
EXTRA_COLUMNS = (
    LPIPS, *ITEM_COLUMNS, "token_accuracy", *TABLE_COLUMNS, LABELS, EXPLAINED, *SERVER_COLUMNS,
)  # fmt: skip
"""Last columns of results.csv, in this order; a file has only those that its run measures."""
MOSTLY = 0.9
"""Share of a row's columns that are right in a success."""


class Scoring(ABC):
    """Scores samples of one kind and saves them as files for inspection.

    Args:
        metrics: the run's settings of the metrics.
    """

    sample: ClassVar[str]
    """What a sample is called in tables and reports, such as ``image``."""
    headline: ClassVar[tuple[str, str]]
    """Column and title of the main score."""
    columns: ClassVar[Mapping[str, tuple[str, str]]]
    """Column of results.csv -> title and format, in the order of tables."""
    suffix: ClassVar[str]
    """Extension of the files that :meth:`keep` writes."""
    has_classes: ClassVar[bool] = True
    """Whether the samples have labels of several classes."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    @classmethod
    @abstractmethod
    def success(cls, metrics: Metrics) -> str:
        """The criterion by which a reconstruction counts as a success, in a few words."""

    @classmethod
    @abstractmethod
    def space(cls, metrics: Metrics) -> str:
        """What the metrics are computed on, such as the scaling of images."""

    @classmethod
    @abstractmethod
    def extra_columns(cls, metrics: Metrics) -> tuple[str, ...]:
        """Columns that results.csv has in addition to the standard ones."""

    @abstractmethod
    def scores(self, truth: GroundTruth, reconstruction: Reconstruction) -> list[Scores]:
        """Match the reconstructions of a batch to its samples and score each pair.

        Returns:
            For each sample the values by column, and ``match``, the position of its reconstruction.
        """

    @abstractmethod
    def keep(self, reconstructed: Tensor, original: Tensor | None, path: Path) -> None:
        """Write one reconstructed sample to a file for inspection.

        Args:
            reconstructed: the sample, normalised.
            original: the true sample. If None, it is not known.
            path: the file, with the extension ``suffix``.
        """


class ImageScoring(Scoring):
    """Scores images ``(C, H, W)`` by SSIM, PSNR, MSE and optionally LPIPS; saves them as PNG.

    Args:
        metrics: see :class:`Scoring`.
        mean: mean of each channel of the data.
        std: standard deviation of each channel.

    Raises:
        BadInput: if LPIPS is requested and its weights are not available.
    """

    sample: ClassVar[str] = "image"
    headline: ClassVar[tuple[str, str]] = ("ssim", "SSIM")
    columns: ClassVar[Mapping[str, tuple[str, str]]] = {
        "ssim": ("SSIM", ".4f"), LPIPS: ("LPIPS", ".4f"), "psnr": ("PSNR dB", ".2f"),
        "mse": ("MSE", ".2e"),
    }  # fmt: skip
    suffix: ClassVar[str] = ".png"

    def __init__(self, metrics: Metrics, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(metrics)
        self._mean, self._std = mean, std
        self._lpips = Lpips() if metrics.lpips else None

    @classmethod
    def success(cls, metrics: Metrics) -> str:
        """See :meth:`Scoring.success`."""
        return f"SSIM >= {metrics.success_threshold:g}"

    @classmethod
    def space(cls, metrics: Metrics) -> str:
        """See :meth:`Scoring.space`."""
        if metrics.space == "pixels":
            return "images scaled back to [0, 1], data range 1"
        return "normalised images, data range 2"

    @classmethod
    def extra_columns(cls, metrics: Metrics) -> tuple[str, ...]:
        """See :meth:`Scoring.extra_columns`."""
        return (LPIPS,) if metrics.lpips else ()

    def scores(self, truth: GroundTruth, reconstruction: Reconstruction) -> list[Scores]:
        """See :meth:`Scoring.scores`."""
        found = score_images(
            truth, reconstruction, mean=self._mean, std=self._std, space=self._metrics.space,
            threshold=self._metrics.success_threshold, lpips=self._lpips,
        )  # fmt: skip
        scores = [asdict(item) | {"success": int(item.success)} for item in found]
        return scores if self._lpips is not None else [_without(item, LPIPS) for item in scores]

    def keep(self, reconstructed: Tensor, original: Tensor | None, path: Path) -> None:
        """See :meth:`Scoring.keep`."""
        pixels = to_space(reconstructed, self._mean, self._std, "pixels")
        Image.fromarray(np.ascontiguousarray(to_picture(np.nan_to_num(pixels)))).save(path)


class ItemScoring(Scoring):
    """Scores interaction vectors ``(items,)`` by precision, recall and F1; saves them as CSV.

    Args:
        metrics: see :class:`Scoring`.
        names: the name of every item.
    """

    sample: ClassVar[str] = "user"
    headline: ClassVar[tuple[str, str]] = ("f1", "F1")
    columns: ClassVar[Mapping[str, tuple[str, str]]] = {
        "f1": ("F1", ".4f"), "precision": ("P", ".4f"), "recall": ("R", ".4f"),
    }  # fmt: skip
    suffix: ClassVar[str] = ".csv"
    has_classes: ClassVar[bool] = False

    def __init__(self, metrics: Metrics, names: Sequence[str]) -> None:
        super().__init__(metrics)
        self._names = names

    @classmethod
    def success(cls, metrics: Metrics) -> str:
        """See :meth:`Scoring.success`."""
        return "exactly the user's items"

    @classmethod
    def space(cls, metrics: Metrics) -> str:
        """See :meth:`Scoring.space`."""
        return f"all items; those with a value >= {metrics.item_threshold:g} count as found"

    @classmethod
    def extra_columns(cls, metrics: Metrics) -> tuple[str, ...]:
        """See :meth:`Scoring.extra_columns`."""
        return ITEM_COLUMNS

    def scores(self, truth: GroundTruth, reconstruction: Reconstruction) -> list[Scores]:
        """See :meth:`Scoring.scores`."""
        found = score_items(truth, reconstruction, threshold=self._metrics.item_threshold)
        return [_without(asdict(item), "exact") | {"success": int(item.exact)} for item in found]

    def keep(self, reconstructed: Tensor, original: Tensor | None, path: Path) -> None:
        """See :meth:`Scoring.keep`; a row for each item that is the user's or was found."""
        found = reconstructed >= self._metrics.item_threshold
        has = found if original is None else original >= 0.5
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("item", "name", "value", "found", "true"))
            for item in (found | has).nonzero().flatten().tolist():
                known = "" if original is None else int(has[item])
                value = f"{float(reconstructed[item]):.4g}"
                writer.writerow((item, self._names[item], value, int(found[item]), known))


class TableScoring(Scoring):
    """Scores rows of a table ``(entries,)`` column by column; saves them as CSV.

    Args:
        metrics: see :class:`Scoring`.
        columns: the table's columns.
    """

    sample: ClassVar[str] = "row"
    headline: ClassVar[tuple[str, str]] = ("right", "Right")
    columns: ClassVar[Mapping[str, tuple[str, str]]] = {
        "right": ("Right", ".4f"), "right_of_guess": ("Guess", ".4f"),
        "error": ("Error", ".4f"), EXACT: ("Exact", ".2f"),
    }  # fmt: skip
    suffix: ClassVar[str] = ".csv"

    def __init__(self, metrics: Metrics, columns: Sequence[TableColumn]) -> None:
        super().__init__(metrics)
        self._columns = columns

    @classmethod
    def success(cls, metrics: Metrics) -> str:
        """See :meth:`Scoring.success`."""
        return f"at least {MOSTLY:.0%} of the columns right"

    @classmethod
    def space(cls, metrics: Metrics) -> str:
        """See :meth:`Scoring.space`."""
        return (
            "columns; right: the category, or a number within 0.319 standard deviations; error: "
            "of numbers, in standard deviations; guess: the column's mean or most frequent category"
        )

    @classmethod
    def extra_columns(cls, metrics: Metrics) -> tuple[str, ...]:
        """See :meth:`Scoring.extra_columns`."""
        return TABLE_COLUMNS

    def scores(self, truth: GroundTruth, reconstruction: Reconstruction) -> list[Scores]:
        """See :meth:`Scoring.scores`."""
        found = score_tables(truth, reconstruction, self._columns)
        return [
            _without(vars(item), "columns")
            | {EXACT: int(item.exact), "success": int(item.right >= MOSTLY)}
            for item in found
        ]

    def keep(self, reconstructed: Tensor, original: Tensor | None, path: Path) -> None:
        """See :meth:`Scoring.keep`; a row for each column."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("column", "found", "true", "right", "guess", "guess_right"))
            given = reconstructed if original is None else original
            for item in score_columns(given.flatten(), reconstructed.flatten(), self._columns):
                column = item.column
                cells: list[Any] = [column.name, column.text(item.found), "", ""]
                if original is not None:
                    cells[2:] = [column.text(item.true), int(item.right)]
                guessed = "" if original is None else int(item.guessed)
                writer.writerow((*cells, column.text(column.guess), guessed))


class TokenScoring(Scoring):
    """Scores sequences of whole numbers by position and as a set; saves them as CSV."""

    sample: ClassVar[str] = "sequence"
    headline: ClassVar[tuple[str, str]] = ("token_accuracy", "Tokens")
    columns: ClassVar[Mapping[str, tuple[str, str]]] = {
        "token_accuracy": ("Tokens", ".4f"), EXACT: ("Exact", ".2f"), **ItemScoring.columns,
    }  # fmt: skip
    suffix: ClassVar[str] = ".csv"

    @classmethod
    def success(cls, metrics: Metrics) -> str:
        """See :meth:`Scoring.success`."""
        return "every number at its position"

    @classmethod
    def space(cls, metrics: Metrics) -> str:
        """See :meth:`Scoring.space`."""
        return "positions (tokens, exact) and the set of the batch's numbers (F1, P, R)"

    @classmethod
    def extra_columns(cls, metrics: Metrics) -> tuple[str, ...]:
        """See :meth:`Scoring.extra_columns`."""
        return TOKEN_COLUMNS

    def scores(self, truth: GroundTruth, reconstruction: Reconstruction) -> list[Scores]:
        """See :meth:`Scoring.scores`."""
        found = score_tokens(truth, reconstruction)
        return [
            asdict(item) | {EXACT: int(item.exact), "success": int(item.exact)} for item in found
        ]

    def keep(self, reconstructed: Tensor, original: Tensor | None, path: Path) -> None:
        """See :meth:`Scoring.keep`; a row for each position, empty where a number is not known."""
        true = [""] * reconstructed.numel() if original is None else original.flatten().tolist()
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("position", "found", "true"))
            for position, number in enumerate(reconstructed.flatten().tolist()):
                writer.writerow((position, "" if number < 0 else int(number), true[position]))


CHECKS: Mapping[str, tuple[str, str]] = {
    LABELS: ("labels", ".0%"), EXPLAINED: ("explained", ".2f"), CERTIFIED: ("certified", ".0%"),
    COSINE: ("cosine", ".6f"),
}  # fmt: skip
"""Columns of every kind of sample -> title and format, behind those of the scores in tables."""

SCORINGS: dict[str, type[Scoring]] = {
    "images": ImageScoring, "interactions": ItemScoring, "tables": TableScoring,
    "tokens": TokenScoring,
}  # fmt: skip
"""Kind of samples -> how they are scored."""


def scoring_class(config: RunConfig) -> type[Scoring]:
    """The scoring of a configuration's samples, without loading the data set.

    Images are assumed if the data set's class is not installed here, as for a run from elsewhere.
    """
    try:
        kind = getattr(load_class(config.data.class_path), "kind", "images")
    except BadInput:
        return ImageScoring
    return SCORINGS.get(kind, ImageScoring)


def make_scoring(config: RunConfig, data: PrivateData) -> Scoring:
    """The scoring of a run.

    Args:
        config: the run's configuration.
        data: its data, loaded.

    Raises:
        BadInput: if the configuration requests LPIPS and its weights are not available, or if the
            file of the items' names cannot be read.
    """
    if data.kind == "interactions":
        if isinstance(data, RecommenderData):
            return ItemScoring(config.metrics, data.item_names())
        return ItemScoring(config.metrics, [str(item) for item in range(data.input_shape[0])])
    if data.kind == "tables":
        return TableScoring(config.metrics, columns_of(data))
    if data.kind == "tokens":
        return TokenScoring(config.metrics)
    return ImageScoring(config.metrics, data.mean, data.std)


def to_picture(pixels: npt.NDArray[np.float64]) -> Picture:
    """Convert pixels ``(C, H, W)`` in [0, 1] to a picture: ``(H, W, 3)``, or ``(H, W)`` if grey."""
    values = (pixels * 255).round().astype(np.uint8)
    return values[0] if len(values) == 1 else values.transpose(1, 2, 0)


def _without(values: Scores, name: str) -> Scores:
    return {key: value for key, value in values.items() if key != name}
