"""Originals and their reconstructions side by side, read from a run's folder."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from fedleak.config import RunConfig
from fedleak.data.picture_files import open_image
from fedleak.errors import require
from fedleak.metrics import to_space
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import is_unsupported, read_rows
from fedleak.runs.scoring import ImageScoring, Picture, scoring_class, to_picture
from fedleak.updates.truth import GroundTruth

FORMATS = ("PNG",)
"""Permitted formats of a run's pictures."""


@dataclass(frozen=True)
class Panel:
    """One victim's sample and its reconstructions.

    Args:
        round: number of the round, from 1.
        client: number of the client, from 0.
        sample: position in the client's batch.
        original: pixels ``(H, W)`` or ``(H, W, 3)``, 0 to 255. If None, the ground truth is not
            available.
        reconstructions: column title -> (pixels, SSIM or None).
        unsupported: titles of the reconstructions that the update does not support.
        label: what stands below the original. If empty, round, client and sample.
    """

    round: int
    client: int
    sample: int
    original: Picture | None
    reconstructions: dict[str, tuple[Picture, float | None]]
    unsupported: set[str] = field(default_factory=set)
    label: str = ""


def read_panels(
    folder: RunFolder, config: RunConfig, mean: tuple[float, ...], std: tuple[float, ...]
) -> list[Panel]:
    """The panels of all victims of a run, ordered by round, client and sample.

    Args:
        folder: the run's folder.
        config: its configuration.
        mean: mean of each channel of the data.
        std: standard deviation of each channel.

    Returns:
        The panels; empty if the samples are not images.

    Raises:
        BadInput: if results.csv, the truth or a picture is damaged, or they do not fit together.
    """
    if scoring_class(config) is not ImageScoring:
        return []
    variants = {part.model_name: name for name, part in config.variants.items()}
    panels: dict[tuple[int, int, int], Panel] = {}
    # The samples of a batch have consecutive rows and share a file.
    read_truth = lru_cache(maxsize=1)(folder.read_truth)
    for row in read_rows(folder.results):
        key = (row["round"], row["client"], row["sample"])
        path = folder.reconstruction(row)
        picture = read_picture(path)
        if key not in panels:
            truth = read_truth(variants.get(row["model"], ""), *key[:2])
            original = None
            if truth is not None:
                _check_truth(truth, key[2], len(mean), picture, path)
                original = to_picture(to_space(truth.inputs[key[2]], mean, std, "pixels"))
            panels[key] = Panel(*key, original, {})
        title = f"{row['attack']} on {row['model']}"
        panels[key].reconstructions[title] = (picture, row["ssim"])
        if is_unsupported(row):
            panels[key].unsupported.add(title)
    return [panels[key] for key in sorted(panels)]


def read_picture(path: Path) -> Picture:
    """Read one of a run's pictures: ``(H, W)`` if it is grey, else ``(H, W, 3)``, 0 to 255.

    Raises:
        BadInput: if the file is not a PNG, damaged or too large.
    """
    with open_image(path, FORMATS) as file:
        return np.asarray(file if file.mode == "L" else file.convert("RGB"))


def _check_truth(
    truth: GroundTruth, sample: int, channels: int, picture: Picture, path: Path
) -> None:
    """Check that the truth has the sample, and that it is as large as its reconstruction."""
    expected = (channels, *picture.shape[:2])
    shape = tuple(truth.inputs.shape)
    require(
        len(truth.inputs) > sample and shape[1:] == expected,
        f"Expected a truth of more than {sample} inputs of shape {expected} beside {path}, got "
        f"inputs of shape {shape}.",
    )
