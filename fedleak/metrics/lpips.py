"""LPIPS, how alike two images look to a network."""

import pickle
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedleak.errors import BadInput, require
from fedleak.extras import extras_explained
from fedleak.metrics.assignment import Array

# The least side with which AlexNet's second pooling leaves anything.
LPIPS_SIDE = 31


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
    with extras_explained():
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
