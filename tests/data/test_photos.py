import socket

import numpy as np
import pytest
import torch

from fedleak.data import Photos, channel_statistics
from fedleak.data import photos as module
from fedleak.data.photos import MEAN, MIN_CONTRAST, STD, photo_patches


def test_counts_and_shapes() -> None:
    data = Photos()
    assert data.input_shape == (3, 32, 32)
    assert data.num_classes == 8
    assert data.classes[0] == "astronaut"
    assert torch.bincount(data.train_set.labels).tolist() == [600] * 8
    assert torch.bincount(data.test_set.labels).tolist() == [100] * 8
    assert data.train_set.images.dtype == torch.uint8


def test_stored_mean_and_std_are_those_of_the_training_patches() -> None:
    mean, std = channel_statistics(photo_patches()[0])
    # JPEG decoders may differ in the last bit of a pixel.
    np.testing.assert_allclose(MEAN, mean, atol=1e-4)
    np.testing.assert_allclose(STD, std, atol=1e-4)
    x, _ = Photos().train_set.batch(range(4800))
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_patches_are_distinct_and_not_flat() -> None:
    train, _, test, _ = photo_patches()
    everything = np.concatenate([train, test])
    assert len({patch.tobytes() for patch in everything}) == len(everything) == 5600
    assert everything.std(axis=(2, 3)).max(axis=1).min() >= MIN_CONTRAST


def test_no_pixel_is_in_train_and_test(monkeypatch: pytest.MonkeyPatch) -> None:
    # Photographs whose pixels tell their row: channel 0 is the row, channel 1 varies along it.
    rows, columns = np.mgrid[0:250, 0:600]
    marked = np.stack([rows, columns % 256, rows * 0], axis=-1).astype(np.uint8)
    monkeypatch.setattr(module, "_photograph", lambda file, factor: marked)
    train, _, test, _ = photo_patches.__wrapped__()
    assert train[:, 0].max() < 200 <= test[:, 0].min()


def test_patches_are_cut_from_the_photograph() -> None:
    # Every patch of the unreduced astronaut is found in the photograph, at a whole stride.
    photograph = module._photograph("astronaut.png", 1)
    assert photograph.shape == (512, 512, 3)
    grid = {
        photograph[r : r + 32, c : c + 32].transpose(2, 0, 1).tobytes(): r
        for start, stop in ((0, 409), (409, 512))
        for r in range(start, stop - 31, 8)
        for c in range(0, 481, 8)
    }
    train, labels, test, _ = photo_patches()
    assert max(grid[patch.tobytes()] for patch in train[labels == 0]) + 32 <= 409
    assert min(grid[patch.tobytes()] for patch in test[:100]) >= 409


def test_reduction_averages_blocks() -> None:
    whole = module._photograph("retina.jpg", 1).astype(float)
    reduced = module._photograph("retina.jpg", 3)
    block = whole[600:603, 900:903].mean(axis=(0, 1))
    assert reduced.dtype == np.uint8
    assert np.abs(reduced[200, 300] - block).max() <= 0.5


def test_no_network_and_one_computation_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("tried to open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    first = photo_patches.__wrapped__()
    assert all(np.array_equal(a, b) for a, b in zip(first, photo_patches(), strict=True))
    assert photo_patches() is photo_patches()
