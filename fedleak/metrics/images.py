"""How near a reconstructed image comes to the true one."""

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

# Pixels lie in [0, 1]. For floats with negative values scikit-image presumes the range [-1, 1],
# which is what the PRECODE paper's figures on normalised images rest on.
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
        ssim: structural similarity, -1 to 1.
        success: whether the SSIM reaches the threshold.
        noise_mse: mean squared error of the restored noise; NaN where none was restored.
        lpips: learned perceptual image patch similarity; none where it was not asked for.
    """

    sample: int
    match: int
    mse: float
    psnr: float
    ssim: float
    success: bool
    noise_mse: float
    lpips: float | None = None


def score(
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
        reconstruction: as many reconstructions, normalised.
        mean: mean of each channel, for scaling back to pixels.
        std: deviation of each channel.
        space: ``pixels``: scaled back and clipped to [0, 1]; ``normalised``: as they are.
        threshold: SSIM from which a reconstruction is a success.
        lpips: measures the perceptual similarity too, always on pixels; none: it is left out.

    Returns:
        A score for each sample, in the order of the batch.

    Raises:
        ValueError: if the numbers or shapes of truth and reconstruction differ.
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
    """Normalised images ``(..., C, H, W)`` in the space in which they are compared, float64."""
    values: Array = images.detach().double().numpy()
    if space == "normalised":
        return values
    scale = np.asarray(std).reshape(-1, 1, 1), np.asarray(mean).reshape(-1, 1, 1)
    pixels: Array = np.clip(values * scale[0] + scale[1], 0, 1)
    return pixels


def psnr(original: Array, candidate: Array, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB (scikit-image); infinite for equal images."""
    # Imported here, since it takes a while and whoever attacks need not score.
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(original, candidate):
        return float("inf")
    return float(peak_signal_noise_ratio(original, candidate, data_range=data_range))


def ssim(original: Array, candidate: Array, data_range: float) -> float:
    """Mean structural similarity (scikit-image, uniform window of 7, less for smaller images).

    Args:
        original: ``(C, H, W)``.
        candidate: the same shape.
        data_range: distance of the highest and the lowest valid value.

    Returns:
        -1 to 1; NaN for images with a side below 3, which have no window.
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
