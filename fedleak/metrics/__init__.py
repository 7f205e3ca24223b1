"""How near a reconstruction comes to the truth."""

from fedleak.metrics.assignment import assign, label_recovery_rate, noise_error
from fedleak.metrics.images import DATA_RANGE, Score, Space, psnr, score, ssim, to_space
from fedleak.metrics.items import ItemScore, score_items
from fedleak.metrics.lpips import Lpips, require_alexnet, require_lpips_channels

__all__ = [
    "DATA_RANGE",
    "ItemScore",
    "Lpips",
    "Score",
    "Space",
    "assign",
    "label_recovery_rate",
    "noise_error",
    "psnr",
    "require_alexnet",
    "require_lpips_channels",
    "score",
    "score_items",
    "ssim",
    "to_space",
]
