"""LPIPS, the learned perceptual image patch similarity."""

import pickle
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedleak.errors import BadInput, require
from fedleak.extras import extras_explained
from fedleak.metrics.assignment import Array

# The smallest side for which the output of AlexNet's second pooling is not empty.
LPIPS_SIDE = 31


class Lpips:
    """Learned perceptual image patch similarity, with AlexNet (torchmetrics).

    The weighted distance between two images' features in each layer (Zhang et al., CVPR 2018,
    https://arxiv.org/abs/1801.03924, eq. 1): 0 for equal images, larger for less similar ones.
    Pixels in [0, 1] are scaled to the network's input range [-1, 1], whatever space the other
    metrics are computed in. A grey image is treated as a colour image with three equal channels. An
    image with a side below 31, which is too small for AlexNet, is scaled up (bilinear, with the
    same aspect ratio) to a shorter side of 31; an image of 32x32 is not scaled.

    The weights of the linear layers are part of torchmetrics. Those of AlexNet are torchvision's,
    and must be in torch hub's folder of checkpoints: nothing is downloaded.

    Raises:
        BadInput: if the file of AlexNet's weights is missing or cannot be read.
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
        BadInput: if it is missing.
    """
    # Imported here, since importing it takes a second and few runs need it.
    with extras_explained():
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
    """Check that :class:`Lpips` accepts images with a number of channels.

    Args:
        channels: the number of channels.

    Raises:
        BadInput: if it is neither 1 nor 3.
    """
    require(
        channels in (1, 3),
        f"Expected images of 1 or 3 channels for `metrics.lpips`, got {channels}: leave it out.",
    )


@lru_cache(maxsize=1)
def _lpips_network(path: Path) -> nn.Module:
    """The metric; ``path``, from which torchvision reads the weights, is the cache's key."""
    with extras_explained():
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        # Initialising the layers draws random numbers, which must not change the caller's draws.
        with torch.random.fork_rng(devices=[]):
            return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, pickle.PickleError) as error:
        text = " ".join(str(error).split())
        raise BadInput(
            f"Expected AlexNet's weights for `metrics.lpips` at {path}, got a file that cannot be "
            f"read as such ({text:.80}): copy it again."
        ) from error


def _for_alexnet(pixels: Array) -> Tensor:
    """Pixels ``(1 or 3, H, W)`` as a batch ``(1, 3, H, W)`` that is large enough for AlexNet."""
    image = torch.from_numpy(pixels).float()[None].expand(-1, 3, -1, -1)
    height, width = image.shape[2:]
    if min(height, width) >= LPIPS_SIDE:
        return image
    factor = LPIPS_SIDE / min(height, width)
    size = (round(height * factor), round(width * factor))
    large = nn.functional.interpolate(image, size, mode="bilinear", align_corners=False)
    # Rounding errors may exceed the range, which the metric refuses.
    return large.clamp(0, 1)
