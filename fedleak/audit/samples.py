"""Reconstructed samples beside the true ones and a guess, kept as pictures or tables."""

import csv
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from fedleak.audit.folder import AuditFolder
from fedleak.audit.truth_scores import Samples, Score
from fedleak.runs.scoring import to_picture
from fedleak.runs.text_files import write_whole

# Samples of an update, and entries of a sample that is no picture, of which files are kept.
MOST_SAMPLES = 64
MOST_ENTRIES = 10_000
COLUMNS = ("entry", "true", "guess", "found")


@dataclass(frozen=True, repr=False, eq=False)
class Attacked:
    """What was made of one update's samples, for the scorer's side alone.

    Args:
        truth: the client's samples.
        found: the reconstructions ``(N, ...)``.
        guess: a guess without the update ``(N, ...)``.
        score: their score, which says which reconstruction was matched to which sample.
    """

    truth: Samples
    found: Tensor
    guess: Tensor
    score: Score

    @property
    def are_pictures(self) -> bool:
        """Whether the samples can be drawn: real numbers of 1 to 4 channels."""
        shape = self.truth.inputs.shape[1:]
        return self.truth.inputs.is_floating_point() and len(shape) == 3 and shape[0] <= 4


def keep_samples(folder: AuditFolder, attacked: Attacked) -> None:
    """Write files of an update's first 64 samples: three pictures each, or a table.

    Pictures are drawn on the range of the client's true samples.

    Args:
        folder: the audit's folder.
        attacked: the samples.
    """
    folder.samples.mkdir(parents=True, exist_ok=True)
    truth = attacked.truth.inputs
    low, high = float(truth.min()), float(truth.max())
    for number in range(min(len(truth), MOST_SAMPLES)):
        match, same = (found[number] for found in (attacked.score.matches, attacked.score.guessed))
        given = {
            "true": truth[number],
            "guess": attacked.guess[same],
            "found": attacked.found[match],
        }
        if not attacked.are_pictures:
            path = folder.sample(attacked.score.key, number, "", ".csv")
            write_whole(path, _table(given))
            continue
        for what, sample in given.items():
            pixels = _pixels(sample, low, high)
            Image.fromarray(np.ascontiguousarray(to_picture(pixels))).save(
                folder.sample(attacked.score.key, number, what)
            )


def _pixels(sample: Tensor, low: float, high: float) -> npt.NDArray[np.float64]:
    """One or three channels ``(C, H, W)`` in [0, 1]; what is not finite is black."""
    shown = sample.detach().double().cpu()[: 3 if len(sample) >= 3 else 1]
    scaled = (shown - low) / (high - low or 1.0)
    pixels: npt.NDArray[np.float64] = np.nan_to_num(scaled.numpy(), posinf=0.0, neginf=0.0)
    return pixels.clip(0.0, 1.0)


def _table(given: dict[str, Tensor]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    columns = [given[name].flatten().tolist()[:MOST_ENTRIES] for name in COLUMNS[1:]]
    for entry, values in enumerate(zip(*columns, strict=True)):
        writer.writerow((entry, *(f"{value:.6g}" for value in values)))
    return text.getvalue()
