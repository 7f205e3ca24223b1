from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.functional import normalize

import fedleak.data
from fedleak.data import ImageSet, denormalise, normalise, valid_range
from fedleak.data.images import find_data_path
from fedleak.errors import BadInput
from tests.data.toy_images import MEAN, STD, Toy, image_set, pixels

# ------------------------------------------------------------------------------- scaling


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (7, 2, 3, 4, 5)])
def test_normalise_agrees_with_torchvision(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(normalise(images, MEAN, STD), normalize(images, MEAN, STD))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from([torch.float32, torch.float64]))
def test_denormalise_undoes_normalise(seed: int, channels: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, channels, 3, 3, generator=generator, dtype=dtype)
    mean = torch.rand(channels, generator=generator).tolist()
    std = (torch.rand(channels, generator=generator) + 0.1).tolist()
    back = denormalise(normalise(images, mean, std), mean, std)
    assert back.dtype == dtype
    torch.testing.assert_close(back, images, atol=1e-5, rtol=0)


def test_valid_range_is_black_and_white() -> None:
    low, high = valid_range([0.5, 0.25], [0.5, 0.125])
    assert low.shape == high.shape == (2, 1, 1)
    assert low.flatten().tolist() == [-1.0, -2.0]
    assert high.flatten().tolist() == [1.0, 6.0]


@pytest.mark.parametrize("scale", [normalise, denormalise])
def test_scaling_refuses_what_it_would_get_wrong(scale) -> None:
    with pytest.raises(BadInput, match="divide uint8 pixels by 255"):
        scale(pixels(), MEAN, STD)
    with pytest.raises(BadInput, match=r"`mean` .* 2 values for images of shape \(1, 3, 2, 2\)"):
        scale(torch.zeros(1, 3, 2, 2), MEAN[:2], STD)
    with pytest.raises(BadInput, match=r"`std` .* 1 values"):
        scale(torch.zeros(1, 3, 2, 2), MEAN, STD[:1])


# ------------------------------------------------------------------------------- ImageSet


def test_item_of_pixels_is_normalised() -> None:
    data = image_set()
    image, label = data[4]
    assert image.dtype == torch.float32
    assert image.shape == (3, 4, 5)
    torch.testing.assert_close(image, normalize(pixels()[4] / 255, MEAN, STD))
    assert label.dtype == torch.int64
    assert label.shape == ()
    assert int(label) == 1


def test_float_pixels_give_the_same_as_bytes() -> None:
    as_bytes = image_set()
    as_floats = ImageSet(pixels().float() / 255, as_bytes.labels, mean=MEAN, std=STD)
    torch.testing.assert_close(as_floats[2][0], as_bytes[2][0])


def test_normalised_images_pass_through() -> None:
    images = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3
    data = ImageSet(images, torch.zeros(3).long(), mean=MEAN, std=STD, normalised=True)
    assert torch.equal(data[1][0], images[1])
    assert torch.equal(data.batch([2, 0])[0], images[[2, 0]])


@pytest.mark.parametrize("kind", ["list", "tensor", "array"])
def test_batch_equals_one_by_one(kind: str) -> None:
    data, chosen = image_set(), torch.tensor([5, 0, 5, 2])
    indices = {"list": chosen.tolist(), "tensor": chosen, "array": chosen.numpy()}[kind]
    x, y = data.batch(indices)
    assert torch.equal(x, torch.stack([data[i][0] for i in chosen.tolist()]))
    assert torch.equal(y, torch.stack([data[i][1] for i in chosen.tolist()]))


def test_empty_batch() -> None:
    x, y = image_set().batch([])
    assert x.shape == (0, 3, 4, 5)
    assert y.shape == (0,)


def test_iteration_ends() -> None:
    assert len(list(image_set(6))) == len(image_set(6)) == 6


GOOD = {"images": pixels(), "labels": torch.zeros(6).long(), "mean": MEAN, "std": STD}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": pixels()[0]}, r"`images` to be uint8 or float32 of shape \(N, C, H, W\)"),
        ({"images": pixels().long()}, r"got torch.int64 of shape \(6, 3, 4, 5\)"),
        ({"labels": torch.zeros(6)}, r"`labels` to be int64 .* got torch.float32"),
        ({"labels": torch.zeros(6, 1).long()}, r"`labels` to be int64 of shape \(N,\)"),
        ({"labels": torch.zeros(5).long()}, "got 5 labels and 6 images"),
        ({"labels": torch.tensor([0, 1, -2, 0, 0, 0])}, "got the label -2"),
        ({"mean": (0.5,)}, r"`mean` .* 3 channels, got \[0.5\]"),
        ({"std": (0.5, 0.5, float("nan"))}, "`std` to hold one finite value"),
        ({"std": (0.5, 0.0, 0.5)}, "`std` to hold positive values"),
        ({"normalised": True}, "`normalised` images to be float32, got uint8"),
        ({"images": pixels().float()}, r"within \[0, 1\], got \[0, 25\d\]; divide"),
        ({"images": torch.full((6, 3, 2, 2), torch.nan)}, r"within \[0, 1\], got \[nan, nan\]"),
        (
            {"images": torch.full((6, 3, 2, 2), torch.inf), "normalised": True},
            "`images` to be finite",
        ),
    ],
)
def test_image_set_refuses(change: dict[str, object], message: str) -> None:
    ImageSet(**GOOD)
    with pytest.raises(BadInput, match=message):
        ImageSet(**(GOOD | change))


# ------------------------------------------------------------------------------- ImageData


def test_properties_prepare_and_load_once() -> None:
    data = Toy()
    assert data.calls == []
    assert data.input_shape == (3, 4, 5)
    assert data.num_classes == 3
    assert data.classes == ["0", "1", "2"]
    assert data.mean == MEAN
    assert data.std == STD
    assert data.train_set is data.sets[0]
    assert data.test_set is data.sets[1]
    data.setup("fit")
    assert data.calls == ["prepare", "load"]


def test_classes_count_those_of_both_sets() -> None:
    data = Toy(train=image_set(2, [0, 1]), test=image_set(2, [0, 4]))
    assert data.num_classes == 5


def test_class_names_that_are_known() -> None:
    data = Toy(names=["cat", "dog", "owl", "yak"])
    assert data.classes == ["cat", "dog", "owl", "yak"]
    assert data.num_classes == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": image_set(0)}, "at least one training and one test image, got 0 and 5"),
        ({"test": image_set(0)}, "got 10 and 0 in `toy`"),
        ({"test": image_set(5, channels=1)}, r"one shape, got \(3, 4, 5\) and \(1, 4, 5\)"),
        (
            {"test": ImageSet(pixels(), torch.zeros(6).long(), mean=MEAN, std=(1, 1, 1))},
            "one `mean` and `std`",
        ),
        ({"names": ["cat", "dog"]}, "labels below 2, the number of classes, got the label 2"),
    ],
)
def test_setup_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Toy(**arguments).setup()


def test_catalogue_resolves() -> None:
    assert all(hasattr(fedleak.data, name) for name in fedleak.data.__all__)
    names = {getattr(fedleak.data, name).name for name in ("CIFAR10", "CIFAR100", "Npz", "Photos")}
    assert names == {"cifar10", "cifar100", "npz", "photos"}


def test_a_relative_path_is_searched_for_in_the_folder_of_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (there / "set.npz").touch()
    monkeypatch.chdir(here)
    assert find_data_path("set.npz") == Path("set.npz")
    monkeypatch.setenv("FEDLEAK_DATA", str(there))
    assert find_data_path("set.npz") == there / "set.npz"
    assert find_data_path("other.npz") == Path("other.npz")
    (here / "set.npz").touch()
    assert find_data_path("set.npz") == Path("set.npz")
