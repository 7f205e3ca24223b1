import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fedleak.data import Npz, denormalise
from fedleak.errors import BadInput

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4


def save(folder: Path, **arrays: np.ndarray) -> str:
    path = folder / "set.npz"
    np.savez_compressed(path, **arrays)
    return str(path)


# ------------------------------------------------------------------------------- what it reads


@pytest.mark.parametrize("image_key", ["images", "x", "data"])
@pytest.mark.parametrize("label_key", ["labels", "y", "targets"])
def test_one_array_of_each_is_split(tmp_path: Path, image_key: str, label_key: str) -> None:
    data = Npz(path=save(tmp_path, **{image_key: COLOUR, label_key: LABELS}), test_fraction=0.25)
    assert (len(data.train_set), len(data.test_set)) == (15, 5)
    assert data.input_shape == (3, 6, 5)
    assert data.num_classes == 4
    # Every image lies in exactly one of the sets, together with its own label.
    known = {image.transpose(2, 0, 1).tobytes(): i for i, image in enumerate(COLOUR)}
    found = []
    for half in (data.train_set, data.test_set):
        for image, label in zip(half.images, half.labels, strict=True):
            found.append(known[image.numpy().tobytes()])
            assert int(label) == LABELS[found[-1]]
    assert sorted(found) == list(range(20))
    assert found != list(range(20))


def test_split_is_deterministic(tmp_path: Path) -> None:
    path = save(tmp_path, images=COLOUR, labels=LABELS)
    assert torch.equal(Npz(path=path).test_set.images, Npz(path=path).test_set.images)


@pytest.mark.parametrize(("fraction", "expected"), [(0.001, (19, 1)), (0.5, (10, 10))])
def test_test_set_has_an_image(tmp_path: Path, fraction: float, expected: tuple[int, int]) -> None:
    data = Npz(path=save(tmp_path, images=COLOUR, labels=LABELS), test_fraction=fraction)
    assert (len(data.train_set), len(data.test_set)) == expected


def test_fraction_zero_tests_on_the_training_set(tmp_path: Path) -> None:
    data = Npz(path=save(tmp_path, images=COLOUR, labels=LABELS), test_fraction=0)
    assert torch.equal(data.train_set.images, data.test_set.images)
    assert data.train_set.labels.tolist() == LABELS.tolist()


def test_medmnist_layout(tmp_path: Path) -> None:
    grey = COLOUR[..., 0]
    path = save(
        tmp_path,
        train_images=grey[:12],
        val_images=grey[12:16],
        test_images=grey[16:],
        train_labels=LABELS[:12, None].astype(np.uint8),
        val_labels=LABELS[12:16, None].astype(np.uint8),
        test_labels=LABELS[16:, None].astype(np.uint8),
    )
    data = Npz(path=path)
    assert data.input_shape == (1, 6, 5)
    assert np.array_equal(data.train_set.images[:, 0], grey[:12])
    assert np.array_equal(data.test_set.images[:, 0], grey[16:])
    assert data.test_set.labels.tolist() == LABELS[16:].tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_first_and_last(tmp_path: Path, channels: int) -> None:
    last = COLOUR[..., :channels]
    first = last.transpose(0, 3, 1, 2)
    from_last = Npz(path=save(tmp_path, images=last, labels=LABELS), test_fraction=0)
    assert np.array_equal(from_last.train_set.images, first)
    from_first = Npz(path=save(tmp_path, images=first, labels=LABELS), test_fraction=0)
    assert np.array_equal(from_first.train_set.images, first)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "f2"])
def test_float_pixels(tmp_path: Path, dtype: str) -> None:
    floats = (COLOUR / 255).astype(dtype)
    data = Npz(path=save(tmp_path, images=floats, labels=LABELS), test_fraction=0)
    assert data.train_set.images.dtype == torch.float32
    np.testing.assert_allclose(data.mean, COLOUR.mean((0, 1, 2)) / 255, atol=1e-3)
    x, _ = data.train_set.batch(range(20))
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_scaling_is_computed_from_the_training_pixels(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        train_images=COLOUR[:10],
        train_labels=LABELS[:10],
        test_images=COLOUR[10:],
        test_labels=LABELS[10:],
    )
    data = Npz(path=path)
    np.testing.assert_allclose(data.mean, (COLOUR[:10] / 255).mean((0, 1, 2)), atol=1e-9)
    np.testing.assert_allclose(data.std, (COLOUR[:10] / 255).std((0, 1, 2)), atol=1e-9)
    assert data.test_set.mean == data.mean


def test_given_scaling_is_used(tmp_path: Path) -> None:
    path = save(tmp_path, images=COLOUR, labels=LABELS)
    data = Npz(path=path, mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.25], test_fraction=0)
    expected = (COLOUR[3, ..., 2] / 255 - 0.5) / 0.25
    np.testing.assert_allclose(data.train_set[3][0][2], expected, atol=1e-6)


def test_normalised_images_pass_through(tmp_path: Path) -> None:
    images = RNG.normal(size=(5, 3, 4, 4)).astype(np.float32)
    path = save(tmp_path, images=images, labels=np.arange(5))
    data = Npz(path=path, normalised=True, mean=[0.4] * 3, std=[0.3] * 3, test_fraction=0)
    assert np.array_equal(data.train_set[2][0], images[2])
    assert data.mean == (0.4, 0.4, 0.4)


# ------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test_fraction": 1.0}, "`test_fraction` to be at least 0 and below 1, got 1.0"),
        ({"test_fraction": -0.1}, "`test_fraction` .* got -0.1"),
        ({"test_fraction": float("nan")}, "`test_fraction` .* got nan"),
        ({"mean": [0.5]}, "got only `mean`; give both or neither"),
        ({"std": [0.5]}, "got only `std`"),
        ({"normalised": True}, "`mean` and `std` with `normalised: true`"),
    ],
)
def test_arguments_are_checked_at_once(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Npz(path="nowhere.npz", **arguments)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": COLOUR, "labels": LABELS}, "got pictures, labels in .*rename the arrays"),
        ({"train_images": COLOUR, "train_labels": LABELS}, "Expected the arrays train_images"),
        ({}, "got none in"),
        ({"images": COLOUR, "labels": LABELS[:7]}, r"shape \(20, 6, 5, 3\) .* shape \(7,\)"),
        ({"images": COLOUR[0, 0, 0, 0], "labels": LABELS}, r"images of shape \(\)"),
        ({"images": COLOUR[:, :3], "labels": LABELS}, "both the second and the last axis do"),
        ({"images": COLOUR[..., :2], "labels": LABELS}, r"\(20, 6, 5, 2\) .* none does"),
        ({"images": COLOUR[:, 0, 0], "labels": LABELS}, r"\(20, 3\) .* none does"),
        ({"images": COLOUR.astype(np.int64), "labels": LABELS}, "uint8 or float .* got int64"),
        ({"images": COLOUR.astype(np.float32), "labels": LABELS}, "set `normalised` to true"),
        ({"images": COLOUR * np.nan, "labels": LABELS}, r"got \[nan, nan\]"),
        ({"images": COLOUR, "labels": LABELS / 2}, "whole numbers .* got float64"),
        ({"images": COLOUR, "labels": np.eye(20, dtype=int)}, r"int64 of shape \(20, 20\)"),
        ({"images": COLOUR, "labels": LABELS - 1}, "count classes from 0, got the label -1"),
        ({"images": COLOUR[:1], "labels": LABELS[:1]}, "got 0 and 1 in"),
        ({"images": COLOUR[:0], "labels": LABELS[:0]}, "got 0 and 0 in"),
        ({"images": COLOUR * 0 + 7, "labels": LABELS}, "set `mean` and `std` yourself"),
    ],
)
def test_arrays_are_checked(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Npz(path=save(tmp_path, **arrays)).setup()


def test_training_and_test_images_of_different_shapes(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        train_images=COLOUR,
        train_labels=LABELS,
        test_images=COLOUR[:, :5],
        test_labels=LABELS,
    )
    with pytest.raises(BadInput, match=r"one shape, got \(3, 6, 5\) and \(3, 5, 5\) in `npz`"):
        Npz(path=path).setup()


def test_normalised_pixels_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, images=COLOUR, labels=LABELS)
    with pytest.raises(BadInput, match=r"type float \(`normalised` is true\), got uint8"):
        Npz(path=path, normalised=True, mean=[0.5] * 3, std=[0.5] * 3).setup()


def test_scaling_for_other_channels(tmp_path: Path) -> None:
    path = save(tmp_path, images=COLOUR, labels=LABELS)
    with pytest.raises(BadInput, match=r"`mean` to hold one finite value .* 3 channels, got \[0.5"):
        Npz(path=path, mean=[0.5], std=[0.5]).setup()


@pytest.mark.parametrize("name", ["missing.npz", "."])
def test_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"found no file `.*--data.path"):
        Npz(path=str(tmp_path / name)).setup()


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["object array", "bare pickle"])
def test_pickle_is_never_read(tmp_path: Path, kind: str) -> None:
    path, sprung = tmp_path / "set.npz", tmp_path / "sprung"
    if kind == "object array":
        np.savez(path, images=np.array([Trap(sprung)], dtype=object), labels=LABELS[:1])
    else:
        path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(BadInput, match="without pickled objects, could not read"):
        Npz(path=str(path)).setup()
    assert not sprung.exists()


@pytest.mark.parametrize("kind", ["empty", "single array", "text", "half", "tail lost", "flipped"])
def test_damaged_file(tmp_path: Path, kind: str) -> None:
    path = Path(save(tmp_path, images=COLOUR, labels=LABELS))
    raw = path.read_bytes()
    middle = len(raw) // 2
    damaged = {
        "empty": b"",
        "text": b"images,labels\n1,2\n",
        "half": raw[:middle],
        "tail lost": raw[:-10],
        "flipped": raw[:middle] + bytes([raw[middle] ^ 255]) + raw[middle + 1 :],
    }
    if kind == "single array":
        with path.open("wb") as file:
            np.save(file, COLOUR)
    else:
        path.write_bytes(damaged[kind])
    with pytest.raises(BadInput, match=r"intact .npz file .* could not read `.*set.npz`"):
        Npz(path=str(path)).setup()


@pytest.mark.parametrize("shape", [(20, 6, 5, -3), (20, 9**12, 9, 3), (20, 6, 5, "3)")])
def test_false_shape(tmp_path: Path, shape: tuple[object, ...]) -> None:
    """An intact archive whose array's header has an impossible shape."""
    array = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(array, header)
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("images.npy", array.getvalue() + COLOUR.tobytes())
        archive.writestr("labels.npy", b"")
    with pytest.raises(BadInput, match="could not read") as caught:
        Npz(path=str(tmp_path / "set.npz")).setup()
    assert "\n" not in str(caught.value)


def test_any_damage_is_reported_in_one_sentence(tmp_path: Path) -> None:
    path = Path(save(tmp_path, images=COLOUR[:4], labels=LABELS[:4]))
    raw, rng = path.read_bytes(), np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        damaged = bytearray(raw)
        for position in rng.integers(0, len(raw), 3):
            damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            Npz(path=str(path)).setup()
        except BadInput:
            refused += 1
    assert refused > 150


# ------------------------------------------------------------------------------- real data

FOLDER = os.environ.get("FEDLEAK_DATA")
real_data = pytest.mark.skipif(not FOLDER, reason="FEDLEAK_DATA names no folder of real data")


@real_data
def test_real_cifar10() -> None:
    data = Npz(path=f"{FOLDER}/cifar10.npz")
    assert data.input_shape == (3, 32, 32)
    assert data.num_classes == 10
    assert (len(data.train_set), len(data.test_set)) == (5438, 1017)
    # A tenth of CIFAR-10 has nearly the mean and deviation of the whole.
    np.testing.assert_allclose(data.mean, (0.4915, 0.4823, 0.4468), atol=0.01)
    np.testing.assert_allclose(data.std, (0.2470, 0.2435, 0.2616), atol=0.01)


@real_data
def test_real_victims() -> None:
    data = Npz(
        path=f"{FOLDER}/victims_cifar10.npz",
        normalised=True,
        mean=[0.49146724, 0.48226175, 0.44677013],
        std=[0.24703224, 0.24348514, 0.26158786],
        test_fraction=0,
    )
    assert data.input_shape == (3, 32, 32)
    assert len(data.train_set) == 64
    x, _ = data.train_set.batch(range(64))
    back = denormalise(x, data.mean, data.std)
    assert -1e-3 <= float(back.min()) < 0.05
    assert 0.95 < float(back.max()) <= 1 + 1e-3
    with pytest.raises(BadInput, match="set `normalised` to true"):
        Npz(path=f"{FOLDER}/victims_cifar10.npz").setup()


def forged(path: Path, shapes: dict[str, tuple[int, ...]]) -> str:
    """An archive of a few hundred bytes whose headers give shapes that the arrays do not have."""
    with zipfile.ZipFile(path / "set.npz", "w") as archive:
        for name, shape in shapes.items():
            array = io.BytesIO()
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(array, header)
            archive.writestr(f"{name}.npy", array.getvalue())
    return str(path / "set.npz")


def test_a_small_archive_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    path = forged(tmp_path, {"images": (2**30, 2, 2), "labels": (1,)})
    with pytest.raises(BadInput, match=r"arrays of at most 4,294,967,296 bytes .* 4,294,967,297"):
        Npz(path=path).setup()
    # Nothing is taken off by an array that tells less than nothing.
    path = forged(tmp_path, {"images": (2**30, 2, 2), "labels": (-(2**40),)})
    with pytest.raises(BadInput, match="could not read"):
        Npz(path=path).setup()


@pytest.mark.parametrize("largest", [100_000, 2**62])
def test_the_largest_label_determines_the_number_of_classes(tmp_path: Path, largest: int) -> None:
    labels = LABELS.astype(np.int64)
    labels[0] = largest
    path = str(save(tmp_path, images=COLOUR, labels=labels))
    with pytest.raises(BadInput, match=f"labels below 100,000, got the label {largest:,} in `npz`"):
        Npz(path=path).setup()
