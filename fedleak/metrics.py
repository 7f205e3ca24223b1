"""How near a reconstruction comes to the truth."""

import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from fedleak.attacks.base import Reconstruction
from fedleak.errors import BadInput, require
from fedleak.updates import GroundTruth

Array = npt.NDArray[np.float64]
Space = Literal["pixels", "normalised"]

# Pixels lie in [0, 1]. For floats with negative values scikit-image presumes the range [-1, 1],
# which is what the PRECODE paper's figures on normalised images rest on.
DATA_RANGE: dict[Space, float] = {"pixels": 1.0, "normalised": 2.0}
SSIM_WINDOW = 7
# The least side with which AlexNet's second pooling leaves anything.
LPIPS_SIDE = 31


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


class Lpips:
    """Learned perceptual image patch similarity, with AlexNet (torchmetrics).

    The distance of two images' features, layer by layer (Zhang et al., CVPR 2018,
    https://arxiv.org/abs/1801.03924, eq. 1): 0 for equal images, more for less alike ones. Pixels
    in [0, 1] are scaled to [-1, 1], as the network has learned them, whatever space the other
    metrics are computed in. A grey image counts as a colour image of three equal channels. An image
    with a side below 31, for which AlexNet is too deep, is scaled up (bilinear, keeping its
    proportions) until the shorter side has 31; one of 32x32 stays as it is.

    The weights of the linear layers come with torchmetrics. Those of AlexNet are torchvision's, and
    must lie in torch hub's folder of checkpoints: nothing is ever downloaded.

    Raises:
        BadInput: if AlexNet's weights are not there, or the file cannot be read.
    """

    def __init__(self) -> None:
        self._network = _lpips_network(require_alexnet())

    def __call__(self, original: Array, candidate: Array) -> float:
        """The distance of two images.

        Args:
            original: pixels ``(1, H, W)`` or ``(3, H, W)`` in [0, 1].
            candidate: the same shape.

        Returns:
            At least 0; NaN if a pixel is NaN.

        Raises:
            BadInput: for another number of channels than 1 or 3.
        """
        require_lpips_channels(len(original))
        if not (np.isfinite(original).all() and np.isfinite(candidate).all()):
            return float("nan")
        with torch.no_grad():
            value = float(self._network(_for_alexnet(original), _for_alexnet(candidate)))
        self._network.reset()  # type: ignore[operator]
        return value


def require_alexnet() -> Path:
    """The file of AlexNet's weights that :class:`Lpips` needs.

    Raises:
        BadInput: if it is not there.
    """
    # Imported here, since it takes a second and few runs need it.
    from torchvision.models import AlexNet_Weights

    url: str = AlexNet_Weights.DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    require(
        path.is_file(),
        f"Expected AlexNet's weights for `metrics.lpips` at {path}, found none: fetch them from "
        f"{url}, or leave `metrics.lpips` out.",
    )
    return path


def require_lpips_channels(channels: int) -> None:
    """Check that :class:`Lpips` takes images of so many channels.

    Raises:
        BadInput: if it does not.
    """
    require(
        channels in (1, 3),
        f"Expected images of 1 or 3 channels for `metrics.lpips`, got {channels}: leave it out.",
    )


@lru_cache(maxsize=1)
def _lpips_network(path: Path) -> nn.Module:
    """The metric; ``path``, from which torchvision reads, tells one set of weights from another."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        # The layers are drawn before they are read, which no other draw must notice.
        with torch.random.fork_rng(devices=[]):
            return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, pickle.PickleError) as error:
        text = " ".join(str(error).split())
        raise BadInput(
            f"Expected AlexNet's weights for `metrics.lpips` at {path}, got a file that cannot be "
            f"read as such ({text:.80}): copy it again."
        ) from error


def _for_alexnet(pixels: Array) -> Tensor:
    """Pixels ``(1 or 3, H, W)`` as a batch of one colour image that is large enough."""
    image = torch.from_numpy(pixels).float()[None].expand(-1, 3, -1, -1)
    height, width = image.shape[2:]
    if min(height, width) >= LPIPS_SIDE:
        return image
    factor = LPIPS_SIDE / min(height, width)
    size = (round(height * factor), round(width * factor))
    large = nn.functional.interpolate(image, size, mode="bilinear", align_corners=False)
    # Rounding may lead out of the range, which the metric refuses.
    return large.clamp(0, 1)


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
    if truth.inputs.shape != reconstruction.inputs.shape:
        raise ValueError(
            f"Expected a reconstruction of shape {tuple(truth.inputs.shape)}, "
            f"got {tuple(reconstruction.inputs.shape)}."
        )
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
                noise_mse=_noise_error(truth, reconstruction, sample, match),
                lpips=distances[sample],
            )
        )
    return scores


def label_recovery_rate(labels: Tensor, recovered: Tensor) -> float:
    """Share of a batch's labels that were recovered, each as often as it occurs.

    Args:
        labels: the true labels ``(B,)``, in any order.
        recovered: as many recovered ones.

    Returns:
        0 to 1.

    Raises:
        ValueError: if the numbers differ, or there are none.
    """
    if labels.shape != recovered.shape or not len(labels):
        raise ValueError(
            f"Expected as many labels as recovered ones, and one at least, got {len(labels)} and "
            f"{len(recovered)}."
        )
    shared = Counter(labels.tolist()) & Counter(recovered.tolist())
    return shared.total() / len(labels)


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
