import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedleak.data.image_folder import ImageFolder, MedicalMNIST
from fedleak.errors import BadInput


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    """Two classes of 30 grey 10x12 images each, every third image of which is there twice."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        for index in range(30):
            pixels = generator.integers(0, 256, (10, 12), dtype=np.uint8)
            write(tmp_path / "images" / name / f"{index}.png", pixels)
            if index % 3 == label:
                write(tmp_path / "images" / name / f"{index}-again.png", pixels)
    return tmp_path / "images"


def test_reads_pixels_labels_and_class_names(root):
    data = ImageFolder(root=str(root), grey=True)
    assert data.input_shape == (1, 10, 12)
    assert data.classes == ["cat", "dog"]
    assert len(data.train_set) + len(data.test_set) == 80
    assert {int(label) for label in data.train_set.labels} == {0, 1}
    pixels = {image.numpy().tobytes() for image in torch.cat([data.train_set.images])}
    first = np.asarray(Image.open(root / "cat" / "0.png"))
    second = np.asarray(Image.open(root / "dog" / "7.png"))
    both = pixels | {image.numpy().tobytes() for image in data.test_set.images}
    assert {first.tobytes(), second.tobytes()} <= both
    assert data.mean[0] == pytest.approx(data.train_set.images.double().mean().item() / 255)


def test_classes_are_numbered_in_the_given_order(root):
    data = ImageFolder(root=str(root), grey=True, class_names=["dog", "cat"])
    assert data.classes == ["dog", "cat"]
    images = torch.cat([data.train_set.images, data.test_set.images]).numpy()
    labels = torch.cat([data.train_set.labels, data.test_set.labels]).tolist()
    label_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for label, name in enumerate(("dog", "cat")):
        for path in (root / name).iterdir():
            assert label_of[np.asarray(Image.open(path)).tobytes()] == label


def test_the_order_holds_for_own_train_and_test_folders(tmp_path):
    for part in ("train", "test"):
        for value, name in enumerate(("a", "b")):
            write(tmp_path / part / name / "0.png", np.full((6, 6), 50 * value, np.uint8))
    data = ImageFolder(root=str(tmp_path), grey=True, class_names=["b", "a"])
    for found in (data.train_set, data.test_set):
        labels = {
            int(image.max()): int(k) for image, k in zip(found.images, found.labels, strict=True)
        }
        assert labels == {50: 0, 0: 1}


@pytest.mark.parametrize("names", [["dog"], ["dog", "cat", "bird"], ["dog", "cat", "dog"], []])
def test_other_class_names_than_the_folders_are_refused(root, names):
    with pytest.raises(BadInput, match=r"class folders of .* \['cat', 'dog'\], got"):
        ImageFolder(root=str(root), class_names=names).setup()


def test_byte_duplicates_stay_in_one_split_and_the_split_is_deterministic(root):
    data, again = (ImageFolder(root=str(root), grey=True, test_fraction=0.3) for _ in range(2))
    train = {image.numpy().tobytes() for image in data.train_set.images}
    test = {image.numpy().tobytes() for image in data.test_set.images}
    assert not train & test
    assert 0.1 < len(data.test_set) / 80 < 0.5
    assert torch.equal(data.test_set.images, again.test_set.images)


def test_colour_and_size(root):
    data = ImageFolder(root=str(root), size=8)
    assert data.input_shape == (3, 8, 8)


def test_own_train_and_test_folders_are_kept(tmp_path):
    for part, count in (("train", 4), ("test", 2)):
        for index in range(count):
            for name in ("a", "b"):
                pixels = np.full((6, 6), 10 * index + len(part), np.uint8)
                write(tmp_path / part / name / f"{index}.png", pixels)
    data = ImageFolder(root=str(tmp_path), grey=True, mean=[0.5], std=[0.25])
    assert (len(data.train_set), len(data.test_set)) == (8, 4)
    assert data.mean == (0.5,)


def test_other_classes_for_test_are_refused(tmp_path):
    for part, name in (("train", "a"), ("test", "b")):
        write(tmp_path / part / name / "0.png", np.zeros((6, 6), np.uint8))
    with pytest.raises(BadInput, match="same classes"):
        ImageFolder(root=str(tmp_path)).setup()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_fraction": 0.0}, "test_fraction"),
        ({"test_fraction": 1.0}, "test_fraction"),
        ({"size": 0}, "size"),
        ({"mean": [0.5]}, "both `mean` and `std`"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(BadInput, match=message):
        ImageFolder(root="anywhere", **settings)


def test_missing_empty_broken_and_uneven_folders(root, tmp_path):
    with pytest.raises(BadInput, match="found none"):
        ImageFolder(root=str(tmp_path / "nowhere")).setup()
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(BadInput, match="images for each class"):
        ImageFolder(root=str(tmp_path / "empty")).setup()
    write(root / "cat" / "large.png", np.zeros((20, 20), np.uint8))
    with pytest.raises(BadInput, match="set `size`"):
        ImageFolder(root=str(root)).setup()
    (root / "cat" / "broken.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"broken\.png"):
        ImageFolder(root=str(root), size=8).setup()


def test_medical_mnist_is_grey_64x64_with_the_papers_constants(root):
    data = MedicalMNIST(root=str(root))
    assert data.input_shape == (1, 64, 64)
    assert (data.mean, data.std) == ((0.35834864,), (0.2821981,))
    assert MedicalMNIST(root=str(root), class_names=["dog", "cat"]).classes == ["dog", "cat"]
    with pytest.raises(BadInput, match="Medical-MNIST-Classification"):
        MedicalMNIST(root=str(root / "nowhere")).setup()


@pytest.mark.skipif("FEDLEAK_DATA" not in os.environ, reason="FEDLEAK_DATA is not set")
def test_real_medical_mnist(tmp_path):
    archive = Path(os.environ["FEDLEAK_DATA"]) / "medical_mnist_6000.tar.gz"
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    data = MedicalMNIST(root=str(tmp_path / "medical_mnist"))
    assert data.input_shape == (1, 64, 64)
    assert data.num_classes == 6
    assert len(data.train_set) + len(data.test_set) == 6000
    # A sixth of a tenth of the full set was drawn evenly over the classes, so means differ a bit.
    pixels = data.train_set.images.double() / 255
    assert abs(float(pixels.mean()) - data.mean[0]) < 0.1


def test_images_with_too_many_bytes_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(10):
            pixels = np.full((4, 4), number + 100 * (label == "b"), np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    monkeypatch.setattr("fedleak.data.image_folder.LARGEST", 20 * 4 * 4)
    ImageFolder(root=str(tmp_path), grey=True, test_fraction=0.3).setup()
    monkeypatch.setattr("fedleak.data.image_folder.LARGEST", 9 * 4 * 4)
    with pytest.raises(BadInput, match=r"images of at most 144 bytes together in .* of 4 x 4"):
        ImageFolder(root=str(tmp_path), grey=True, test_fraction=0.3).setup()
    with pytest.raises(BadInput, match="`size` to be from 1 to 8192, got 100000"):
        ImageFolder(root=str(tmp_path), size=100_000)
