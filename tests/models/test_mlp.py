"""Multilayer perceptrons."""

import pytest
import torch
from torch import nn

from fedleak.errors import BadInput
from fedleak.models import DMLP, SMLP, ImageClassifier


def test_width_out_of_range() -> None:
    with pytest.raises(BadInput, match=r"`model.width` to be at least 1, got 0"):
        SMLP(input_shape=(1, 2, 2), num_classes=2, width=0)


@pytest.mark.parametrize(("kind", "hidden"), [(SMLP, 2), (DMLP, 4)])
def test_perceptrons(kind: type[ImageClassifier], hidden: int) -> None:
    with torch.device("meta"):
        layers = list(kind(input_shape=(1, 2, 2), num_classes=2).features)
    assert [type(layer) for layer in layers] == [nn.Flatten, *[nn.Linear, nn.ReLU] * hidden]
