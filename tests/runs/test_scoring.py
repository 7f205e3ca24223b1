"""Scores of reconstructions, and the files of samples."""

import numpy as np

from fedleak.runs.scoring import to_picture


def test_picture_in_colour_and_in_grey() -> None:
    colour, grey = np.zeros((3, 2, 4)), np.ones((1, 2, 4)) * 0.5
    colour[0] = 1
    assert to_picture(colour).shape == (2, 4, 3)
    assert to_picture(colour)[0, 0].tolist() == [255, 0, 0]
    assert to_picture(grey).shape == (2, 4)
    assert to_picture(grey)[0, 0] == 128
