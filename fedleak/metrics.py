"""How near a reconstruction comes to the truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from fedleak.attacks.base import Reconstruction
from fedleak.updates import GroundTruth

Array = npt.NDArray[np.float64]
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
    """

    sample: int
    match: int
    mse: float
    psnr: float
    ssim: float
    success: bool
    noise_mse: float


def score(
    truth: GroundTruth,
    reconstruction: Reconstruction,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    space: Space = "pixels",
    threshold: float = 0.6,
) -> list[Score]:
    """Match the reconstructions of a batch to its samples and score each pair.

    Args:
        truth: the client's batch ``(B, C, H, W)``, normalised.
        reconstruction: as many reconstructions, normalised.
        mean: mean of each channel, for scaling back to pixels.
        std: deviation of each channel.
        space: ``pixels``: scaled back and clipped to [0, 1]; ``normalised``: as they are.
        threshold: SSIM from which a reconstruction is a success.

    Returns:
        A score for each sample, in the order of the batch.

    Raises:
        ValueError: if the numbers or shapes of truth and reconstruction differ.
    """
    if truth.inputs.shape != reconstruction.inputs.shape:
        raise ValueError(
            f"Expected a reconstruction of shape {tuple(truth.inputs.shape)}, "
            f"got {tuple(reconstruction.inputs.shape)}."
        )
    originals = to_space(truth.inputs, mean, std, space)
    candidates = to_space(reconstruction.inputs, mean, std, space)
    matches = assign(originals, candidates)
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
                noise_mse=_noise_error(truth, reconstruction, sample, match),
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


def assign(originals: Array, candidates: Array) -> list[int]:
    """The assignment of candidates to originals with the least total squared error.

    Args:
        originals: ``(B, ...)``.
        candidates: ``(B, ...)``; NaN counts as infinitely far.

    Returns:
        For each original the position of its candidate.
    """
    flat, other = originals.reshape(len(originals), -1), candidates.reshape(len(candidates), -1)
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b, which never holds all pairs of images at once.
    products = flat @ other.T
    errors = (flat**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * products
    finite = np.nan_to_num(errors, nan=1e9, posinf=1e9)
    return [int(column) for column in linear_sum_assignment(finite)[1]]


def psnr(original: Array, candidate: Array, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB (scikit-image); infinite for equal images."""
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
    side = min(SSIM_WINDOW, *original.shape[1:])
    if side < 3:
        return float("nan")
    window = side if side % 2 else side - 1
    return float(
        structural_similarity(
            original, candidate, channel_axis=0, data_range=data_range, win_size=window
        )
    )


def _noise_error(
    truth: GroundTruth, reconstruction: Reconstruction, sample: int, match: int
) -> float:
    shared = truth.noise.keys() & reconstruction.noise.keys()
    if not shared:
        return float("nan")
    errors = [truth.noise[name][sample] - reconstruction.noise[name][match] for name in shared]
    total = sum(float(error.square().sum()) for error in errors)
    return total / sum(error.numel() for error in errors)
