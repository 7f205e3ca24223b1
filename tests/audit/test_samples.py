"""Files of reconstructed samples, beside true ones and a guess."""

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fedleak.audit.folder import AuditFolder
from fedleak.audit.samples import MOST_ENTRIES, Attacked, keep_samples
from fedleak.audit.truth_scores import Samples, Score
from tests.audit.made_audit import attacked


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_pictures_are_on_the_range_of_the_true_samples(tmp_path: Path) -> None:
    folder = AuditFolder(tmp_path)
    truth = torch.tensor([-1.0, 0.0, 1.0, 3.0]).reshape(2, 1, 1, 2)
    found = torch.tensor([1.0, float("nan"), -5.0, 9.0]).reshape(2, 1, 1, 2)
    # The second reconstruction was matched to the first sample.
    score = Score.of("r0001-c0000", "iga", [0.5, 0.5], [0.0, 0.0], 1.0, True, [1, 0], [0, 1])
    keep_samples(folder, Attacked(Samples(truth, None), found, torch.zeros(2, 1, 1, 2), score))
    # From -1 to 3: 0 is a quarter of the way, 64 of 255.
    assert pixels(folder.sample("r0001-c0000", 0, "true")).tolist() == [[0, 64]]
    assert pixels(folder.sample("r0001-c0000", 1, "true")).tolist() == [[128, 255]]
    assert pixels(folder.sample("r0001-c0000", 0, "found")).tolist() == [[0, 255]]
    assert pixels(folder.sample("r0001-c0000", 1, "found")).tolist() == [[128, 0]]
    assert pixels(folder.sample("r0001-c0000", 0, "guess")).tolist() == [[64, 64]]


def test_channels(tmp_path: Path) -> None:
    folder = AuditFolder(tmp_path)
    for channels, shape in ((1, (8, 8)), (2, (8, 8)), (3, (8, 8, 3)), (4, (8, 8, 3))):
        keep_samples(folder, attacked(f"c{channels}", shape=(channels, 8, 8)))
        assert pixels(folder.sample(f"c{channels}", 1, "found")).shape == shape
    keep_samples(folder, attacked("many", shape=(5, 8, 8)))
    assert folder.sample("many", 0, "", ".csv").is_file()


def test_other_samples_are_tables(tmp_path: Path) -> None:
    folder = AuditFolder(tmp_path)
    one = attacked("r0001-c0000", shape=(7,), whole=True)
    keep_samples(folder, one)
    with folder.sample("r0001-c0000", 0, "", ".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["true"]) for row in rows] == one.truth.inputs[0].tolist()
    # The found ones are in the opposite order, and matched.
    assert [int(row["found"]) for row in rows] == one.truth.inputs[0].tolist()
    assert {row["guess"] for row in rows} == {"0"}
    keep_samples(folder, attacked("long", shape=(MOST_ENTRIES + 5,), samples=1))
    assert len(folder.sample("long", 0, "", ".csv").read_text().splitlines()) == MOST_ENTRIES + 1


def test_their_representation_shows_no_sample() -> None:
    assert "tensor" not in repr(attacked("r0001-c0000"))
