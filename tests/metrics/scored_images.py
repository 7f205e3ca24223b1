"""Scores of images in [0, 1], to share between tests."""

import torch
from torch import Tensor

from fedleak.attacks import Reconstruction
from fedleak.metrics import Score, score_images
from fedleak.updates.truth import GroundTruth

MEAN, STD = (0.5, 0.25), (0.2, 0.5)


def scored(originals: Tensor, candidates: Tensor, **settings) -> list[Score]:
    """Scores of pixels, normalised on the way in."""
    mean, std = (torch.tensor(v[: originals.shape[1]]).reshape(-1, 1, 1) for v in (MEAN, STD))
    noise = {name: settings.pop(name, {}) for name in ("truth_noise", "restored_noise")}
    labels = torch.zeros(len(originals), dtype=torch.long)
    truth = GroundTruth((originals - mean) / std, labels, noise["truth_noise"])
    result = Reconstruction((candidates - mean) / std, labels, noise["restored_noise"])
    channels = originals.shape[1]
    return score_images(truth, result, mean=MEAN[:channels], std=STD[:channels], **settings)


def noisy(images: Tensor, amount: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (images + amount * torch.randn(images.shape, generator=generator)).clamp(0, 1)
