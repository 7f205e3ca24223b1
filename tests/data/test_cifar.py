import hashlib
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import datasets

from fedleak.data import CIFAR10, CIFAR100
from fedleak.errors import BadInput


def write(folder: Path, name: str, content: dict[str, object]) -> str:
    """Write one file as torchvision expects it and return its MD5."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = pickle.dumps(content)
    (folder / name).write_bytes(raw)
    return hashlib.md5(raw).hexdigest()


def batch(count: int, classes: int, key: str, seed: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count).tolist()
    return {"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), key: labels}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny CIFAR-10 (two training files) and CIFAR-100 in the official layout."""
    for source, classes, key, names in (
        (datasets.CIFAR10, 10, "labels", ["data_batch_1", "data_batch_2", "test_batch"]),
        (datasets.CIFAR100, 100, "fine_labels", ["train", "test"]),
    ):
        folder = tmp_path / source.base_folder
        listed = [
            [name, write(folder, name, batch(4, classes, key, seed))]
            for seed, name in enumerate(names)
        ]
        meta = {source.meta["key"]: [f"class {i}" for i in range(classes)]}
        md5 = write(folder, source.meta["filename"], meta)
        monkeypatch.setattr(source, "train_list", listed[:-1])
        monkeypatch.setattr(source, "test_list", listed[-1:])
        monkeypatch.setattr(source, "meta", source.meta | {"md5": md5})
    return tmp_path


def test_cifar10(tree: Path) -> None:
    data = CIFAR10(root=str(tree))
    assert data.input_shape == (3, 32, 32)
    assert data.num_classes == 10
    assert data.classes[9] == "class 9"
    assert (len(data.train_set), len(data.test_set)) == (8, 4)
    second = batch(4, 10, "labels", seed=1)
    assert data.train_set.labels[4:].tolist() == second["labels"]
    image, _ = data.train_set[4]
    expected = second["data"][0].reshape(3, 32, 32) / 255
    for c, (mean, std) in enumerate(
        zip((0.49146724, 0.48226175, 0.44677013), (0.24703224, 0.24348514, 0.26158786), strict=True)
    ):
        np.testing.assert_allclose(image[c], (expected[c] - mean) / std, atol=1e-5)


def test_cifar100_has_fine_labels(tree: Path) -> None:
    data = CIFAR100(root=str(tree))
    assert data.num_classes == 100
    assert data.test_set.labels.tolist() == batch(4, 100, "fine_labels", seed=1)["fine_labels"]
    assert data.mean == (0.5070783, 0.48655024, 0.44091797)
    assert data.std == (0.26733464, 0.25643906, 0.2761504)
    assert data.train_set.images.dtype == torch.uint8


def test_present_data_is_not_downloaded_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/nothing")
    assert len(CIFAR10(root=str(tree), download=True).train_set) == 8


@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
def test_missing_data_names_the_folder_and_the_options(kind, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        kind(root=str(tmp_path)).setup()
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[kind.name]
    for part in ("`root`", folder, str(tmp_path), "--data.download true", "--data.root"):
        assert part in str(caught.value)


def test_relative_root_is_reported_as_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=str(tmp_path / "data")):
        CIFAR10().setup()


def test_changed_file_is_never_unpickled(tree: Path) -> None:
    trap = tree / "sprung"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (trap,)

    file = tree / "cifar-10-batches-py" / "data_batch_1"
    file.write_bytes(pickle.dumps(Trap()))
    pickle.loads(file.read_bytes())
    assert trap.exists()  # the trap works,
    trap.unlink()
    with pytest.raises(BadInput, match="found no complete CIFAR10"):
        CIFAR10(root=str(tree)).setup()
    assert not trap.exists()  # and was not stepped into


def test_failed_download_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: datasets.CIFAR10) -> None:
        raise URLError("no network here")

    monkeypatch.setattr(datasets.CIFAR10, "download", fail)
    with pytest.raises(BadInput, match=r"Could not download CIFAR10 .*no network here.*data.root"):
        CIFAR10(root=str(tmp_path), download=True).prepare_data()


def test_prepare_data_downloads_only_when_asked(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda self: calls.append("download"))
    CIFAR10(root=str(tree)).prepare_data()
    assert calls == []
    CIFAR10(root=str(tree), download=True).prepare_data()
    assert calls == ["download"]
