"""The picture of a sweep, from folders made by hand."""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fedleak.reporting import sweep_picture as study_picture
from fedleak.reporting.sweep_picture import SIDE, write_picture
from fedleak.sweep import SweepFolder
from fedleak.updates.files import update_key
from fedleak.updates.truth import GroundTruth
from tests.reporting.sweeps import make, row


def paint(output: Path, side: int = 32) -> None:
    """Originals in a green of the client's own, reconstructions in red (base) or blue."""
    folder = SweepFolder(output)
    for cell in json.loads(folder.summary.read_text())["cells"]:
        run = folder.run(cell["name"])
        if not run.results.exists():
            continue
        # A scaling that leaves values as they are.
        data = {
            "name": "photos", "kind": "images", "input_shape": [3, side, side], "classes": 2,
            "mean": [0.0] * 3, "std": [1.0] * 3,
        }  # fmt: skip
        federation = {"rounds": 1, "clients": 2, "failures": 0, "accuracy": None}
        found = {"status": "complete", "data": data, "attacks": [], "federation": federation}
        run.summary.write_text(json.dumps(found))
        with run.results.open(newline="") as file:
            for found in csv.DictReader(file):
                client = int(found["client"])
                image = torch.zeros(1, 3, side, side)
                image[:, 1] = 1 - client / 5
                path = run.truth() / f"{update_key(1, client)}.safetensors"
                GroundTruth(image, torch.tensor([0]), {}).save(path)
                colour = (0, 0, 255) if "precode" in found["model"] else (255, 0, 0)
                Image.new("RGB", (side, side), colour).save(run.reconstruction(found))


def count(picture: Image.Image, colour: tuple[int, int, int]) -> float:
    """How many images are in this colour."""
    pixels = np.asarray(picture.convert("RGB"))
    return (pixels == colour).all(axis=2).sum() / SIDE**2


def test_picture_has_originals_and_reconstructions(tmp_path):
    output = make(tmp_path)
    paint(output)
    assert write_picture(output) == output / "picture.png"
    picture = Image.open(output / "picture.png")
    # Two seeds with two clients: four victims, and two groups, each with its originals.
    greens = [(0, 255, 0), (0, 204, 0)]
    assert [count(picture, green) for green in greens] == [4, 4]
    assert count(picture, (255, 0, 0)) == 8  # IGA on the undefended SMLP and LeNet
    assert count(picture, (0, 0, 255)) == 4 + 2  # IGA on PRECODE, and NRA on client 0
    # A column for each of original, IGA base, IGA PRECODE, NRA PRECODE; then the LeNet's two.
    width, height = picture.size
    assert width >= 6 * SIDE
    assert height >= 4 * SIDE


def test_picture_shows_six_victims_and_wraps_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(study_picture, "WIDTH", 3 * SIDE)

    def rows(cell, number):
        return [row(cell, client, 0.5) for client in range(8)]

    output = make(tmp_path, {"model": ["smlp", "lenet"]}, rows, federation={"clients": 8})
    paint(output, side=64)
    write_picture(output)
    picture = Image.open(output / "picture.png")
    assert count(picture, (255, 0, 0)) == 12
    assert picture.height >= 12 * SIDE  # one group below the other


def test_what_changes_the_originals_gets_a_group_and_what_does_not_a_column(tmp_path):
    grid = {
        "images": [{"name": f"B{size}", "set": {"federation.batch_size": size}} for size in (1, 2)],
        "restarts": [{"name": f"R{n}", "set": {"attacks.restarts": n}} for n in (1, 2)],
    }
    output = make(tmp_path, grid, lambda cell, number: [row(cell, 0, 0.5)])
    paint(output)
    write_picture(output)
    picture = Image.open(output / "picture.png")
    assert count(picture, (0, 255, 0)) == 2
    assert count(picture, (255, 0, 0)) == 4
