"""LeNet with sigmoids and with ReLU."""

import pytest
from torch import nn

from fedleak.models import ImageClassifier, LeNet, LeNetR


@pytest.mark.parametrize(("kind", "activation"), [(LeNet, nn.Sigmoid), (LeNetR, nn.ReLU)])
def test_lenets(kind: type[ImageClassifier], activation: type[nn.Module]) -> None:
    layers = list(kind(input_shape=(3, 32, 32), num_classes=10).features)
    assert [type(layer) for layer in layers] == [*[nn.Conv2d, activation] * 3, nn.Flatten]
    convolutions = layers[0:6:2]
    assert [layer.stride for layer in convolutions] == [(2, 2), (2, 2), (1, 1)]
    for layer in convolutions:
        assert (layer.kernel_size, layer.padding, layer.out_channels) == ((5, 5), (2, 2), 12)
