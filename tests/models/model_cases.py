"""Cases and batches that the suites over models share."""

import torch

from fedleak.models import ImageClassifier
from tests.cases import CLASSES, MODELS, ModelCase, pictures

OURS = [case for case in MODELS if issubclass(case.kind, ImageClassifier)]


def batch_for(case: ModelCase) -> tuple[torch.Tensor, torch.Tensor]:
    return pictures(5, case.shape).float(), torch.arange(5) % CLASSES
