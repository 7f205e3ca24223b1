"""The victims without the papers' files."""

import pytest

from benchmarks.victims import large_victims


def test_large_victims_are_grey_photographs_without_the_papers_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FEDLEAK_DATA", raising=False)
    data, name = large_victims()
    assert data.input_shape == (1, 64, 64)
    assert name.startswith("photos")
    pixels = data.train_set.images.double()
    assert len(data.train_set.labels.unique()) == data.num_classes == 8
    assert float(pixels.std()) > 0.1 * float(pixels.max())
