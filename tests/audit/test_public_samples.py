"""Public samples from files, right and wrong ones."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedleak.audit.ladder import Public
from fedleak.audit.public_samples import check_public, read_public
from fedleak.errors import BadInput
from tests.audit.apps import imports_undone, observe


def test_samples_are_read(tmp_path: Path) -> None:
    path = tmp_path / "public.npz"
    np.savez(path, inputs=np.arange(48).reshape(3, 1, 4, 4).astype(">f8"), labels=[0, 1, 0])
    public = read_public(path)
    assert public.inputs.dtype == torch.float32
    assert public.inputs.flatten().tolist() == list(range(48))
    assert public.labels.tolist() == [0, 1, 0]
    assert public.name == "public.npz"


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"images": np.zeros(3), "y": np.zeros(3)}, r"`labels` at .*, got images, y in it"),
        ({"inputs": np.zeros((3, 4))}, r"`labels` at .*, got inputs in it"),
        ({}, r"`labels` at .*, got no array in it"),
        ({"inputs": np.zeros((3, 4)), "labels": np.zeros(2, int)}, "of equal length in"),
        ({"inputs": np.zeros(()), "labels": np.zeros((), int)}, "of equal length in"),
        ({"inputs": np.array([{}, None]), "labels": np.zeros(2, int)}, "Expected numbers as `inp"),
        ({"inputs": np.array([np.nan]), "labels": np.zeros(1, int)}, "Expected finite numbers as"),
        ({"inputs": np.array(["a"]), "labels": np.zeros(1, int)}, "Expected finite numbers as"),
        ({"inputs": np.zeros(1), "labels": np.array([-1])}, "Expected whole numbers from 0 on as"),
        ({"inputs": np.zeros(1), "labels": np.array([0.5])}, "Expected whole numbers from 0 on as"),
    ],
)
def test_other_content_is_refused(
    arrays: dict[str, np.ndarray[Any, Any]], sentence: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "public.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=sentence) as raised:
        read_public(tmp_path / "public.npz")
    assert "pickle" not in str(raised.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "public.npz"
    with pytest.raises(BadInput, match=r"at .*, found none"):
        read_public(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    for content in (b"no archive", b"", pickle.dumps([1, 2]), (tmp_path / "one.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"at .*, got a file of another kind") as raised:
            read_public(path)
        assert "pickle" not in str(raised.value)
    np.savez(path, inputs=np.arange(1000.0), labels=np.zeros(1000, int))
    content = bytearray(path.read_bytes())
    content[4000] ^= 255
    path.write_bytes(content)
    with pytest.raises(BadInput, match="got a damaged one"):
        read_public(path)


def test_samples_that_the_model_does_not_take_are_refused(tmp_path: Path) -> None:
    with imports_undone():
        _, _, images = observe(tmp_path / "images", "images")
        _, _, texts = observe(tmp_path / "texts", "text")
    labels = torch.zeros(2, dtype=torch.long)
    check_public(Public(torch.zeros(2, 3, 16, 16), labels, "p.npz"), images)
    sentence = r"of the shape \(3, 16, 16\) per sample in p.npz, .*, got \(784,\)"
    with pytest.raises(BadInput, match=sentence):
        check_public(Public(torch.zeros(2, 784), labels, "p.npz"), images)
    check_public(Public(torch.full((2, 5), 29), labels, "p.npz"), texts)
    with pytest.raises(BadInput, match=r"of the shape \(8,\) per sample"):
        check_public(Public(torch.zeros(2, 3, 8).long(), labels, "p.npz"), texts)
    for wrong in (torch.full((2, 8), 30), torch.zeros(2, 8)):
        with pytest.raises(BadInput, match="whole numbers from 0 to 29 as `inputs` in"):
            check_public(Public(wrong, labels, "p.npz"), texts)
