import math

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from fedleak.attacks import Reconstruction
from fedleak.metrics import psnr, score_images, ssim, to_space
from fedleak.updates.truth import GroundTruth
from tests.cases import pictures
from tests.metrics.scored_images import MEAN, STD, noisy, scored

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
    """Constant images have no variance, so only the comparison of the means remains."""
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
    (item,) = score_images(
        GroundTruth(original, labels), Reconstruction(candidate, labels),
        mean=MEAN, std=STD, space="normalised",
    )  # fmt: skip
    left, right = (value[0, 0].double().numpy() for value in (original, candidate))
    assert item.mse == pytest.approx(mean_squared_error(left, right))
    assert item.psnr == pytest.approx(peak_signal_noise_ratio(left, right, data_range=2))
    assert item.ssim == pytest.approx(structural_similarity(left, right, data_range=2))


# ------------------------------------------------------------------------------- the matching


def test_a_shuffled_batch_is_put_in_order() -> None:
    images = torch.cat([pictures(1, (2, 8, 8), seed=seed) for seed in range(5)])
    order = [3, 0, 4, 1, 2]
    shuffled = noisy(images, 0.02)[order]
    scores = scored(images, shuffled)
    assert [item.sample for item in scores] == [0, 1, 2, 3, 4]
    assert [order[item.match] for item in scores] == [0, 1, 2, 3, 4]
    assert all(item.ssim > 0.8 for item in scores)


def test_nan_affects_only_its_own_score() -> None:
    """A failed reconstruction is matched last, and changes no other score."""
    images = torch.cat([pictures(1, (2, 8, 8), seed=seed) for seed in range(3)])
    broken = images.clone()
    broken[1, 0, 2, 2] = math.nan
    first, failed, last = scored(images, broken)
    assert (first.match, failed.match, last.match) == (0, 1, 2)
    assert (first.psnr, last.psnr) == (math.inf, math.inf)
    assert all(math.isnan(value) for value in (failed.mse, failed.psnr, failed.ssim))
    assert not failed.success


def test_infinity_is_clipped() -> None:
    images = pictures(1, (1, 8, 8))
    wild = images.clone()
    wild[0, 0, 0, 0] = math.inf
    (item,) = scored(images, wild)
    assert item.mse == pytest.approx((1 - float(images[0, 0, 0, 0])) ** 2 / 64)
