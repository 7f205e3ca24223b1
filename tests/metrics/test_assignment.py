"""The assignment of reconstructions to samples, and what is scored for any kind of sample."""

import itertools
import math

import numpy as np
import pytest
import torch

from fedleak.metrics import assign, label_recovery_rate
from tests.cases import pictures
from tests.metrics.scored_images import scored


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_assignment_against_all_permutations(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    originals, candidates = rng.normal(size=(2, size, 1, 3, 2))

    def total(order: tuple[int, ...]) -> float:
        pairs = zip(originals, order, strict=True)
        return sum(float(((left - candidates[i]) ** 2).sum()) for left, i in pairs)

    best = min(itertools.permutations(range(size)), key=total)
    assert assign(originals, candidates) == list(best)


def test_noise_error_follows_the_matching() -> None:
    images = torch.cat([pictures(1, (1, 6, 6), seed=seed) for seed in range(3)])
    noise = {"a": torch.arange(6.0).reshape(3, 2), "b": torch.arange(12.0).reshape(3, 4)}
    order = [2, 0, 1]
    restored = {name: value[order].clone() for name, value in noise.items()}
    restored["a"][0] += 3  # of the sample that is the last of the truth
    scores = scored(
        images, images[order], truth_noise=noise, restored_noise=restored | {"c": torch.ones(3, 1)}
    )
    # Two numbers of six are off by 3.
    assert [item.noise_mse for item in scores] == pytest.approx([0, 0, 2 * 9 / 6])


def test_no_noise_in_common_no_error() -> None:
    images = pictures(1, (1, 6, 6))
    (item,) = scored(images, images, truth_noise={"a": torch.ones(1, 2)})
    assert math.isnan(item.noise_mse)
    (item,) = scored(
        images, images, truth_noise={"a": torch.ones(1, 2)},
        restored_noise={"b": torch.ones(1, 2)},
    )  # fmt: skip
    assert math.isnan(item.noise_mse)


def test_noise_of_one_step_is_not_compared_with_that_of_several() -> None:
    images = pictures(1, (1, 6, 6))
    (item,) = scored(
        images, images, truth_noise={"a": torch.ones(1, 3, 2)},
        restored_noise={"a": torch.ones(1, 2)},
    )  # fmt: skip
    assert math.isnan(item.noise_mse)


def test_numbers_and_shapes_must_agree() -> None:
    images = pictures(2, (1, 6, 6))
    with pytest.raises(ValueError, match=r"shape \(2, 1, 6, 6\), got \(1, 1, 6, 6\)"):
        scored(images, images[:1])
    with pytest.raises(ValueError, match=r"shape \(2, 1, 6, 6\), got \(2, 1, 6, 5\)"):
        scored(images, images[..., :5])


@pytest.mark.parametrize(
    ("recovered", "rate"),
    [
        ([3, 1, 1, 0], 1.0),
        ([0, 1, 1, 3], 1.0),
        ([0, 1, 2, 3], 0.75),  # 1 is there twice
        ([1, 1, 1, 1], 0.5),
        ([2, 4, 5, 6], 0.0),
    ],
    ids=str,
)
def test_share_of_the_labels_recovered(recovered: list[int], rate: float) -> None:
    assert label_recovery_rate(torch.tensor([3, 1, 1, 0]), torch.tensor(recovered)) == rate


@pytest.mark.parametrize(("labels", "recovered"), [([1, 2], [1]), ([], [])], ids=str)
def test_as_many_labels_as_there_are(labels: list[int], recovered: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"got {len(labels)} and {len(recovered)}\."):
        label_recovery_rate(torch.tensor(labels), torch.tensor(recovered))
