"""Pictures resized for figures."""

import numpy as np
import pytest

from fedleak.reporting.drawing import fitted


def test_enlarging_repeats_pixels() -> None:
    picture = np.array([[0, 255]], dtype=np.uint8)
    found = np.asarray(fitted(picture, 6))
    assert found.shape == (3, 6, 3)
    assert (found[:, :3] == 0).all()
    assert (found[:, 3:] == 255).all()


def test_reducing_averages_them() -> None:
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    picture[::2, :, 0] = 200
    found = np.asarray(fitted(picture, 2))
    assert found.shape == (2, 2, 3)
    assert (found[..., 0] == 100).all()
    assert (found[..., 1:] == 0).all()


@pytest.mark.parametrize(("shape", "size"), [((10, 5), (5, 10)), ((100, 1), (1, 10))])
def test_the_longer_side_is_as_asked_and_no_side_vanishes(shape, size) -> None:
    assert fitted(np.zeros(shape, dtype=np.uint8), 10).size == size
