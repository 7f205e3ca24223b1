"""Originals and reconstructions of a run, read from its folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedleak.config import RunConfig
from fedleak.errors import BadInput
from fedleak.registry import Plugin
from fedleak.reporting.panels import read_panels, read_picture
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import append_rows
from fedleak.updates.truth import GroundTruth
from tests.reporting.rows import a_row

MEAN, STD = (0.5,), (0.25,)
PIXELS = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]).reshape(1, 2, 3)


def a_run(tmp_path: Path, truth: torch.Tensor | None) -> tuple[RunFolder, RunConfig]:
    """A run with two samples of one batch, attacked twice."""
    config = RunConfig(
        data=Plugin("fedleak.data.photos.Photos"), model=Plugin("fedleak.models.mlp.SMLP"),
        output=str(tmp_path / "run"),
    )  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    folder.open(config, resume=False, overwrite=False)
    for attack in ("iga", "dlg"):
        # The second sample comes first in the file.
        rows = [a_row(attack=attack, sample=s, batch_size=2, ssim=s / 2) for s in (1, 0)]
        append_rows(folder.results, rows)
        for row in rows:
            grey = np.full((2, 3), 10 * row["sample"], dtype=np.uint8)
            Image.fromarray(grey).save(folder.reconstruction(row))
    if truth is not None:
        normalised = (truth - MEAN[0]) / STD[0]
        GroundTruth(normalised, torch.arange(len(truth))).save(
            folder.truth() / "r0001-c0000.safetensors"
        )
    return folder, config


def test_originals_are_scaled_back_and_attacks_side_by_side(tmp_path: Path) -> None:
    folder, config = a_run(tmp_path, torch.stack([PIXELS, 1 - PIXELS]))
    first, second = read_panels(folder, config, MEAN, STD)
    assert (first.round, first.client, first.sample, second.sample) == (1, 0, 0, 1)
    assert first.original.tolist() == [[0, 51, 102], [153, 204, 255]]
    assert second.original.tolist() == [[255, 204, 153], [102, 51, 0]]
    assert list(first.reconstructions) == ["iga on smlp", "dlg on smlp"]
    picture, ssim = second.reconstructions["dlg on smlp"]
    assert (picture == 10).all()
    assert ssim == 0.5


def test_without_truth_there_are_no_originals(tmp_path: Path) -> None:
    folder, config = a_run(tmp_path, None)
    assert [panel.original for panel in read_panels(folder, config, MEAN, STD)] == [None, None]


@pytest.mark.parametrize("truth", [PIXELS[None], torch.zeros(2, 1, 3, 3), torch.zeros(2, 3, 2, 3)])
def test_a_truth_that_does_not_fit(tmp_path: Path, truth: torch.Tensor) -> None:
    folder, config = a_run(tmp_path, truth)
    with pytest.raises(BadInput, match=r"a truth of more than 1 inputs of shape \(1, 2, 3\)"):
        read_panels(folder, config, MEAN, STD)


def test_a_picture_in_another_format(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (2, 2)).save(path, "JPEG")
    with pytest.raises(BadInput, match=r"picture\.png"):
        read_picture(path)
