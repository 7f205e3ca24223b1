"""Scores of reconstructed images: MSE, PSNR, SSIM, LPIPS and success."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from fedleak.attacks.base import Reconstruction
from fedleak.metrics.assignment import Array, assign, noise_error, require_same_shape
from fedleak.metrics.lpips import Lpips
from fedleak.updates.truth import GroundTruth

Space = Literal["pixels", "normalised"]

# Pixels are in [0, 1]. For floats with negative values scikit-image assumes the range [-1, 1]; the
# PRECODE paper's SSIM values on normalised images were computed with it.
DATA_RANGE: dict[Space, float] = {"pixels": 1.0, "normalised": 2.0}
SSIM_WINDOW = 7


@dataclass(frozen=True)
class Score:
    """Scores of one sample of a batch.

    Args:
        sample: the sample's position in the client's batch.
        match: position of the reconstruction that was matched to it.
        mse: mean squared error.
        psnr: peak signal-to-noise ratio in dB; infinite for equal images.
        ssim: structural similarity, -1 to 1; NaN for images too small for it.
        success: whether the SSIM reaches the threshold.
        noise_mse: mean squared error of the restored noise; NaN if none was restored.
        lpips: learned perceptual image patch similarity, at least 0; None if it was not measured.
    """

    sample: int
    match: int
    mse: float
    psnr: float
    ssim: float
    success: bool
    noise_mse: float
    lpips: float | None = None


def score_images(
    truth: GroundTruth,
    reconstruction: Reconstruction,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    space: Space = "pixels",
    threshold: float = 0.6,
    lpips: Lpips | None = None,
) -> list[Score]:
    """Match the reconstructions of a batch to its samples and score each pair.

    Args:
        truth: the client's batch ``(B, C, H, W)``, normalised.
        reconstruction: reconstructions ``(B, C, H, W)``, normalised.
        mean: mean of each channel, for scaling back to pixels.
        std: standard deviation of each channel.
        space: ``pixels``: images are scaled back and clipped to [0, 1]; ``normalised``: they are
            compared as they are.
        threshold: SSIM from which a reconstruction is a success.
        lpips: measures LPIPS, always on pixels. If None, it is left out.

    Returns:
        A score for each sample, in the order of the batch.

    Raises:
        ValueError: if the shapes of truth and reconstruction differ.
    """
    require_same_shape(truth, reconstruction)
    originals = to_space(truth.inputs, mean, std, space)
    candidates = to_space(reconstruction.inputs, mean, std, space)
    matches = assign(originals, candidates)
    distances: list[float | None] = [None] * len(matches)
    if lpips is not None:
        seen = to_space(truth.inputs, mean, std, "pixels")
        made = to_space(reconstruction.inputs, mean, std, "pixels")
        distances = [lpips(seen[sample], made[match]) for sample, match in enumerate(matches)]
    scores = []
    for sample, match in enumerate(matches):
        original, candidate = originals[sample], candidates[match]
        similarity = ssim(original, candidate, DATA_RANGE[space])
        scores.append(
            Score(
                sample=sample,
                match=match,
                mse=float(np.mean((original - candidate) ** 2)),
                psnr=psnr(original, candidate, DATA_RANGE[space]),
                ssim=similarity,
                success=similarity >= threshold,
                noise_mse=noise_error(truth, reconstruction, sample, match),
                lpips=distances[sample],
            )
        )
    return scores


def to_space(images: Tensor, mean: Sequence[float], std: Sequence[float], space: Space) -> Array:
    """Convert normalised images to the space in which they are compared.

    Args:
        images: normalised images ``(..., C, H, W)``.
        mean: mean of each channel.
        std: standard deviation of each channel.
        space: see :func:`score`.

    Returns:
        float64 images ``(..., C, H, W)``, in [0, 1] if ``space`` is ``pixels``.
    """
    values: Array = images.detach().double().numpy()
    if space == "normalised":
        return values
    scale = np.asarray(std).reshape(-1, 1, 1), np.asarray(mean).reshape(-1, 1, 1)
    pixels: Array = np.clip(values * scale[0] + scale[1], 0, 1)
    return pixels


def psnr(original: Array, candidate: Array, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB (scikit-image); infinite for equal images.

    Args:
        original: an array of any shape.
        candidate: an array of the same shape.
        data_range: difference of the largest and the smallest valid value.
    """
    # Imported here, since importing it is slow and an attack does not need it.
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(original, candidate):
        return float("inf")
    return float(peak_signal_noise_ratio(original, candidate, data_range=data_range))


def ssim(original: Array, candidate: Array, data_range: float) -> float:
    """Mean structural similarity (scikit-image, uniform window of 7, less for smaller images).

    Args:
        original: ``(C, H, W)``.
        candidate: the same shape.
        data_range: difference of the largest and the smallest valid value.

    Returns:
        -1 to 1; NaN for images with a side below 3, on which no window fits.
    """
    from skimage.metrics import structural_similarity

    side = min(SSIM_WINDOW, *original.shape[1:])
    if side < 3:
        return float("nan")
    window = side if side % 2 else side - 1
    return float(
        structural_similarity(
            original, candidate, channel_axis=0, data_range=data_range, win_size=window
        )
    )
