import itertools
import math

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from fedleak.attacks import Reconstruction
from fedleak.metrics import (
    Score,
    assign,
    label_recovery_rate,
    psnr,
    score,
    score_items,
    ssim,
    to_space,
)
from fedleak.updates.truth import GroundTruth
from tests.cases import pictures

MEAN, STD = (0.5, 0.25), (0.2, 0.5)


def scored(originals: Tensor, candidates: Tensor, **settings) -> list[Score]:
    """Scores of pixels, normalised on the way in."""
    mean, std = (torch.tensor(v[: originals.shape[1]]).reshape(-1, 1, 1) for v in (MEAN, STD))
    noise = {name: settings.pop(name, {}) for name in ("truth_noise", "restored_noise")}
    labels = torch.zeros(len(originals), dtype=torch.long)
    truth = GroundTruth((originals - mean) / std, labels, noise["truth_noise"])
    result = Reconstruction((candidates - mean) / std, labels, noise["restored_noise"])
    channels = originals.shape[1]
    return score(truth, result, mean=MEAN[:channels], std=STD[:channels], **settings)


def noisy(images: Tensor, amount: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (images + amount * torch.randn(images.shape, generator=generator)).clamp(0, 1)


# ------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 12, 9), (2, 32, 32)], ids=str)
def test_against_scikit_image_called_directly(shape: tuple[int, int, int]) -> None:
    original = pictures(1, shape).float()
    candidate = noisy(original, 0.1)
    (item,) = scored(original, candidate, threshold=0.5)
    left, right = (value[0].permute(1, 2, 0).double().numpy() for value in (original, candidate))
    assert item.mse == pytest.approx(mean_squared_error(left, right), rel=1e-5)
    assert item.psnr == pytest.approx(peak_signal_noise_ratio(left, right, data_range=1), rel=1e-5)
    expected = structural_similarity(left, right, data_range=1, channel_axis=2)
    assert item.ssim == pytest.approx(expected, rel=1e-4)
    assert item.success == (expected >= 0.5)
    assert math.isnan(item.noise_mse)


def test_by_hand() -> None:
    """Two of four pixels off by 0.1 and 0.3: mean square 0.025, 16.02 dB."""
    original = torch.tensor([[[[0.2, 0.4], [0.6, 0.8]]]])
    candidate = torch.tensor([[[[0.3, 0.4], [0.6, 0.5]]]])
    (item,) = scored(original, candidate)
    assert item.mse == pytest.approx(0.025, rel=1e-5)
    assert item.psnr == pytest.approx(-10 * math.log10(0.025), rel=1e-5)


def test_ssim_by_hand() -> None:
    """Flat images have no variance: what is left is the comparison of the means."""
    left, right = np.full((1, 9, 9), 0.4), np.full((1, 9, 9), 0.8)
    c1 = 0.01**2
    assert ssim(left, right, 1.0) == pytest.approx((2 * 0.32 + c1) / (0.16 + 0.64 + c1))


def test_ssim_is_the_mean_over_channels() -> None:
    left = pictures(1, (2, 10, 10))[0].numpy()
    right = noisy(pictures(1, (2, 10, 10)), 0.2)[0].numpy()
    apart = [ssim(left[c : c + 1], right[c : c + 1], 1.0) for c in range(2)]
    assert ssim(left, right, 1.0) == pytest.approx(np.mean(apart))


def test_equal_images() -> None:
    images = pictures(2, (2, 8, 8))
    for item in scored(images, images.clone()):
        assert (item.mse, item.psnr, item.ssim, item.success) == (0, math.inf, 1, True)


def test_infinite_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    image = np.zeros((1, 4, 4))
    assert psnr(image, image, 1.0) == math.inf
    assert len(recwarn) == 0


@pytest.mark.parametrize(
    ("side", "window"), [(3, 3), (4, 3), (5, 5), (6, 5), (7, 7), (8, 7), (20, 7)]
)
def test_window_shrinks_with_the_image(side: int, window: int) -> None:
    for shape in ((1, side, 25), (1, 25, side)):
        left = pictures(1, shape)[0].numpy()
        right = noisy(pictures(1, shape), 0.2)[0].numpy()
        expected = structural_similarity(left[0], right[0], data_range=1, win_size=min(window, 7))
        assert ssim(left, right, 1.0) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(1, 2, 9), (1, 9, 1), (3, 1, 1)])
def test_too_small_for_a_window(shape: tuple[int, int, int]) -> None:
    original = torch.full((1, *shape), 0.5)[:, :2]
    (item,) = scored(original, original + 0.1)
    assert math.isnan(item.ssim)
    assert not item.success
    assert item.mse == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("threshold", [-1.0, 0.3, 0.9])
def test_success_from_the_threshold(threshold: float) -> None:
    original = pictures(1, (1, 16, 16)).float()
    (item,) = scored(original, noisy(original, 0.15), threshold=threshold)
    assert 0.3 < item.ssim < 0.9
    assert item.success == (threshold <= item.ssim)
    (edge,) = scored(original, noisy(original, 0.15), threshold=item.ssim)
    assert edge.success


# --------------------------------------------------------------------------------- the spaces


def test_pixels_are_scaled_back_and_clipped() -> None:
    images = torch.tensor([[[[-9.0, 0.0]], [[1.0, 9.0]]]])
    pixels = to_space(images, MEAN, STD, "pixels")
    assert pixels.dtype == np.float64
    np.testing.assert_allclose(pixels, [[[[0, 0.5]], [[0.75, 1]]]])
    np.testing.assert_array_equal(to_space(images, MEAN, STD, "normalised"), images.numpy())


def test_normalised_space_has_the_range_of_the_papers_code() -> None:
    """Neither scaled back nor clipped; scikit-image presumes the range 2 for negative floats."""
    original = 3 * pictures(1, (1, 12, 12)) - 1.5
    candidate = original + 0.5 * torch.sin(torch.arange(144.0)).reshape(1, 1, 12, 12)
    labels = torch.zeros(1, dtype=torch.long)
    (item,) = score(
        GroundTruth(original, labels), Reconstruction(candidate, labels),
        mean=MEAN, std=STD, space="normalised",
    )  # fmt: skip
    left, right = (value[0, 0].double().numpy() for value in (original, candidate))
    assert item.mse == pytest.approx(mean_squared_error(left, right))
    assert item.psnr == pytest.approx(peak_signal_noise_ratio(left, right, data_range=2))
    assert item.ssim == pytest.approx(structural_similarity(left, right, data_range=2))


# ------------------------------------------------------------------------------- the matching


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


def test_a_shuffled_batch_is_put_in_order() -> None:
    images = torch.cat([pictures(1, (2, 8, 8), seed=seed) for seed in range(5)])
    order = [3, 0, 4, 1, 2]
    shuffled = noisy(images, 0.02)[order]
    scores = scored(images, shuffled)
    assert [item.sample for item in scores] == [0, 1, 2, 3, 4]
    assert [order[item.match] for item in scores] == [0, 1, 2, 3, 4]
    assert all(item.ssim > 0.8 for item in scores)


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


def test_not_a_number_fails_alone() -> None:
    """A failed reconstruction is matched to what is left, and spoils no other score."""
    images = torch.cat([pictures(1, (2, 8, 8), seed=seed) for seed in range(3)])
    broken = images.clone()
    broken[1, 0, 2, 2] = math.nan
    first, failed, last = scored(images, broken)
    assert (first.match, failed.match, last.match) == (0, 1, 2)
    assert (first.psnr, last.psnr) == (math.inf, math.inf)
    assert all(math.isnan(value) for value in (failed.mse, failed.psnr, failed.ssim))
    assert not failed.success


def test_infinity_is_clipped_like_any_pixel() -> None:
    images = pictures(1, (1, 8, 8))
    wild = images.clone()
    wild[0, 0, 0, 0] = math.inf
    (item,) = scored(images, wild)
    assert item.mse == pytest.approx((1 - float(images[0, 0, 0, 0])) ** 2 / 64)


def test_numbers_and_shapes_must_agree() -> None:
    images = pictures(2, (1, 6, 6))
    with pytest.raises(ValueError, match=r"shape \(2, 1, 6, 6\), got \(1, 1, 6, 6\)"):
        scored(images, images[:1])
    with pytest.raises(ValueError, match=r"shape \(2, 1, 6, 6\), got \(2, 1, 6, 5\)"):
        scored(images, images[..., :5])


# ------------------------------------------------------------------------------- the labels


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


# ------------------------------------------------------------------------------- users' items


def test_items_by_hand() -> None:
    """Of items 0 and 1, item 0 is found, and items 2 and 3 as well; 0.59 is not enough."""
    labels = torch.zeros(1, dtype=torch.long)
    truth = GroundTruth(torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]), labels)
    found = Reconstruction(torch.tensor([[0.6, 0.59, 0.7, 1.0, 0.0]]), labels)
    (item,) = score_items(truth, found)
    assert (item.precision, item.recall) == pytest.approx((1 / 3, 1 / 2))
    assert item.f1 == pytest.approx(0.4)
    assert item.mse == pytest.approx((0.4**2 + 0.41**2 + 0.7**2 + 1) / 5)
    assert not item.exact
    (easier,) = score_items(truth, found, threshold=0.5)
    assert (easier.precision, easier.recall) == pytest.approx((1 / 2, 1))
    (same,) = score_items(truth, Reconstruction(0.8 * truth.inputs, labels))
    assert (same.precision, same.recall, same.f1, same.exact) == (1, 1, 1, True)
    (nothing,) = score_items(truth, Reconstruction(torch.full((1, 5), math.nan), labels))
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.exact) == (0, 0, 0, False)


def test_users_of_a_batch_are_matched() -> None:
    labels = torch.zeros(2, dtype=torch.long)
    inputs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    scores = score_items(GroundTruth(inputs, labels), Reconstruction(inputs.flip(0), labels))
    assert [(item.sample, item.match, item.f1) for item in scores] == [(0, 1, 1), (1, 0, 1)]
