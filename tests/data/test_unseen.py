"""Data of which only the shape is known."""

import pytest
import torch

from fedleak.data.unseen import Unseen
from fedleak.errors import BadInput


def test_shape_classes_and_scaling_are_those_told() -> None:
    data = Unseen(shape=[3, 4, 5], classes=7, samples=2, mean=[0.5], std=[0.25, 0.5, 1.0])
    assert (data.input_shape, data.num_classes) == ((3, 4, 5), 7)
    assert (data.mean, data.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    images, labels = data.train_set.batch([0, 1])
    assert torch.equal(images[0, :, 0, 0], torch.tensor([-2.0, -1.0, -0.5]))  # black
    assert labels.tolist() == [0, 0]
    assert len(data.test_set) == 2


def test_many_samples_take_no_memory() -> None:
    data = Unseen(shape=[3, 64, 64], classes=10, samples=10**5)
    assert data.train_set.images.untyped_storage().nbytes() == 3 * 64 * 64


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shape": [8, 8]}, r"`shape` to be three sizes of at least 1, \(C, H, W\), got \(8, 8\)"),
        ({"shape": [1, 0, 8]}, r"`shape` to be three sizes of at least 1"),
        ({"classes": 0}, "`classes` to be at least 1, got 0"),
        ({"samples": 0}, "`samples` to be at least 1, got 0"),
    ],
)
def test_what_cannot_be(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        Unseen(**{"shape": [1, 8, 8], "classes": 4} | change)
    with pytest.raises(BadInput, match="one finite value for each of the 1 channels"):
        Unseen(shape=[1, 8, 8], classes=4, mean=[0.1, 0.2]).setup()
