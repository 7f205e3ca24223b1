"""The ground truth of an update: saved, read back, checked."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedleak.errors import BadInput
from fedleak.updates.files import Tensors
from fedleak.updates.truth import GroundTruth, join
from tests.cases import MODELS, Victim, case_victim
from tests.reference import shared_values


@pytest.fixture
def victim() -> Victim:
    return case_victim(MODELS[0], precode=True, batch=2, client=3)


def test_truth_comes_back(victim: Victim, tmp_path: Path) -> None:
    path = tmp_path / "truth.safetensors"
    victim.truth.save(path)
    loaded = GroundTruth.load(path)
    assert torch.equal(loaded.inputs, victim.truth.inputs)
    assert torch.equal(loaded.labels, victim.truth.labels)
    assert loaded.noise.keys() == {"bottleneck.noise"}
    assert shared_values(loaded.noise, victim.truth.noise)
    GroundTruth(victim.truth.inputs, victim.truth.labels).save(path)
    assert GroundTruth.load(path).noise == {}


@pytest.mark.parametrize(
    ("inputs", "labels"),
    [
        (torch.tensor([[7, 3], [0, 44]]), torch.tensor([0, 1])),
        (torch.tensor([[0.5, -3.0], [0.0, 9.0]]), torch.tensor([-1.5, 2000.25])),
    ],
    ids=["tokens", "targets of a regression"],
)
def test_samples_that_are_no_images_come_back(
    inputs: torch.Tensor, labels: torch.Tensor, tmp_path: Path
) -> None:
    GroundTruth(inputs, labels).save(tmp_path / "truth.safetensors")
    loaded = GroundTruth.load(tmp_path / "truth.safetensors")
    loaded.check("r0001-c0000", 2, (2,), 2)
    assert torch.equal(loaded.inputs, inputs)
    assert torch.equal(loaded.labels, labels)


INPUTS = torch.zeros(2, 1, 3, 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": torch.tensor([0])}, "`labels` to be 2 numbers in .* of shape"),
        ({"labels": torch.tensor([[0], [1]])}, "`labels` to be 2 numbers"),
        ({"labels": torch.tensor([0.0, torch.nan])}, "finite floating point numbers in .?labels"),
        ({"labels": torch.tensor([True, False])}, "`labels` to be 2 numbers"),
        ({"labels": torch.tensor([0, -1])}, "`labels` to be at least 0 in .*, got -1"),
        ({"inputs": INPUTS[:0]}, "`inputs` of shape .*samples, ..."),
        ({"inputs": torch.zeros(2)}, "`inputs` of shape .*samples, ..."),
        ({"inputs": INPUTS.int()}, "finite floating point numbers in 'inputs'"),
        ({"inputs": INPUTS / 0}, "finite floating point numbers in 'inputs'"),
        ({"noise/slot": torch.zeros(3, 4)}, "'noise/slot' of 2 samples in .* shape .3, 4."),
        ({"noise/slot": torch.zeros(())}, "'noise/slot' of 2 samples in"),
        ({"noise/slot": torch.full((2, 4), math.inf)}, "finite .* in 'noise/slot'"),
        ({"more": torch.zeros(2)}, r"inputs, labels and noise in .*, got \['more'\]"),
    ],
)
def test_damaged_truth(tmp_path: Path, change: Tensors, sentence: str) -> None:
    path = tmp_path / "truth.safetensors"
    tensors = {"inputs": INPUTS, "labels": torch.tensor([0, 1]), "noise/slot": torch.zeros(2, 4)}
    save_file(tensors, path, {"format": "fedleak-truth-1"})
    assert GroundTruth.load(path).noise.keys() == {"slot"}
    save_file(tensors | change, path, {"format": "fedleak-truth-1"})
    with pytest.raises(BadInput, match=f"Expected {sentence}"):
        GroundTruth.load(path)


def test_truth_that_is_not_behind_an_update() -> None:
    truth = GroundTruth(INPUTS, torch.tensor([0, 3]))
    truth.check("r0001-c0000", 2, (1, 3, 3), 4)
    for samples, shape, classes, text in (
        (3, (1, 3, 3), 4, r"inputs of shape \(3, 1, 3, 3\), got \(2, 1, 3, 3\)"),
        (2, (1, 3), 4, r"inputs of shape \(2, 1, 3\), got \(2, 1, 3, 3\)"),
        (2, (1, 3, 3), 3, "labels below 3, the number of classes, got 3"),
    ):
        with pytest.raises(BadInput, match=f"truth of update r0001-c0000 to hold {text}"):
            truth.check("r0001-c0000", samples, shape, classes)


@pytest.mark.parametrize("missing", ["inputs", "labels"])
def test_truth_without_its_batch(tmp_path: Path, missing: str) -> None:
    tensors = {"inputs": torch.ones(1), "labels": torch.ones(1)}
    del tensors[missing]
    path = tmp_path / "truth.safetensors"
    save_file(tensors, path, {"format": "fedleak-truth-1"})
    with pytest.raises(BadInput, match=f"`{missing}` in .*truth.safetensors"):
        GroundTruth.load(path)


def test_truths_of_several_clients_are_joined() -> None:
    """In order; of noise, the slots of which all clients have some of the same shape."""
    first = GroundTruth(
        torch.ones(2, 3), torch.tensor([0, 1]),
        {"a": torch.zeros(2, 4), "b": torch.zeros(2, 1), "c": torch.zeros(2, 1)},
    )  # fmt: skip
    second = GroundTruth(
        torch.zeros(1, 3), torch.tensor([2]), {"a": torch.ones(1, 4), "b": torch.zeros(1, 2)}
    )
    found = join([first, second])
    assert found.inputs.tolist() == [[1.0] * 3, [1.0] * 3, [0.0] * 3]
    assert found.labels.tolist() == [0, 1, 2]
    assert set(found.noise) == {"a"}
    assert found.noise["a"].sum() == 4
